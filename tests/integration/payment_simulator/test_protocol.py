"""The simulator answers as contracts/payment-provider.openapi.yaml says, and refuses what is not valid."""

from typing import Any

import httpx
import pytest

from tests.support.contracts import payment_provider, provider_violations
from tests.support.simulators import Simulator, simulator

BODY = {"amount": "12.50", "currency": "EUR"}


def authorize(http: httpx.Client, key: str, body: Any = BODY) -> httpx.Response:
    """Send a request to authorize."""
    return http.post("/v1/payments", json=body, headers={"Idempotency-Key": key})


def checked(response: httpx.Response, method: str, path: str) -> Any:
    """Return the body of a response that the contract describes."""
    responses = payment_provider()["paths"][path][method]["responses"]
    described = responses[str(response.status_code)]
    if "$ref" in described:
        described = payment_provider()["components"]["responses"][described["$ref"].rpartition("/")[2]]
    schema = described["content"][response.headers["content-type"]]["schema"]
    assert provider_violations(schema, response.json()) == []
    return response.json()


def test_every_answer_of_a_payment_matches_the_contract(http: httpx.Client, key: str) -> None:
    charged = checked(authorize(http, key), "post", "/v1/payments")
    assert charged == {"key": key, "status": "authorized", **BODY}
    voided = checked(http.post(f"/v1/payments/{key}/void"), "post", "/v1/payments/{key}/void")
    assert voided == {"key": key, "status": "voided"}
    payment = checked(http.get(f"/v1/payments/{key}"), "get", "/v1/payments/{key}")
    assert (payment["status"], payment["charges"], payment["held"]) == ("voided", 1, "0.00")
    history = checked(http.get(f"/v1/payments/{key}/history"), "get", "/v1/payments/{key}/history")
    assert [(entry["kind"], entry["amount"]) for entry in history["entries"]] == [
        ("charge", "12.50"),
        ("void", "12.50"),
    ]
    assert checked(authorize(http, key), "post", "/v1/payments")["status"] == "voided"


def test_a_key_that_was_voided_before_its_use_matches_the_contract(http: httpx.Client, key: str) -> None:
    answer = checked(http.post(f"/v1/payments/{key}/void"), "post", "/v1/payments/{key}/void")
    assert answer == {"key": key, "status": "nothing_to_void"}
    assert checked(authorize(http, key), "post", "/v1/payments") == {
        "key": key,
        "status": "voided",
        "amount": None,
        "currency": None,
    }
    payment = checked(http.get(f"/v1/payments/{key}"), "get", "/v1/payments/{key}")
    assert (payment["amount"], payment["charges"]) == (None, 0)


def test_the_list_has_every_payment_on_linked_pages(http: httpx.Client) -> None:
    keys = [f"list-{number:03}" for number in range(7)]
    for key in reversed(keys):
        authorize(http, key)
    found: list[str] = []
    after: str | None = "list-"
    while after is not None and not found[7:]:
        page = checked(http.get("/v1/payments", params={"after": after, "limit": 3}), "get", "/v1/payments")
        assert len(page["payments"]) <= 3
        found += [payment["key"] for payment in page["payments"]]
        after = page["next"]
    assert [key for key in found if key in keys] == keys
    everything = checked(http.get("/v1/payments"), "get", "/v1/payments")
    assert [payment["key"] for payment in everything["payments"]] == sorted(p["key"] for p in everything["payments"])


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "1.5", "", "x", "99999999999999999999"])
def test_a_wrong_limit_of_a_page_is_refused(http: httpx.Client, limit: str) -> None:
    response = http.get(f"/v1/payments?limit={limit or '%20'}")
    assert checked(response, "get", "/v1/payments")["status"] == 400


def test_the_same_amount_in_another_form_is_the_same_payment(http: httpx.Client, key: str) -> None:
    assert authorize(http, key, {"amount": "12.5", "currency": "EUR"}).json()["amount"] == "12.50"
    assert authorize(http, key).status_code == 200


@pytest.mark.parametrize("other", [{"amount": "12.51", "currency": "EUR"}, {"amount": "12.50", "currency": "USD"}])
def test_a_key_with_another_amount_is_answered_409(http: httpx.Client, key: str, other: dict[str, str]) -> None:
    authorize(http, key)
    assert checked(authorize(http, key, other), "post", "/v1/payments")["status"] == 409
    assert http.get(f"/v1/payments/{key}").json()["held"] == "12.50"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"\x1f\x8b\x08\x00",
        b'{"amount": "12.50"}',
        b'{"amount": 12.5, "currency": "EUR"}',
        b'{"amount": "12.50", "currency": "EUR", "key": "a"}',
        b'{"amount": null, "currency": "EUR"}',
        b'{"amount": "12.50", "currency": "XXX"}',
        b'{"amount": "12.50", "currency": "eur"}',
        b'{"amount": "12.50", "currency": ["EUR"]}',
        *(
            b'{"amount": "%s", "currency": "EUR"}' % amount
            for amount in (b"", b"0", b"-1", b"NaN", b"Infinity", b"1e2", b"1,50", b" 1", b"1.505", b"0x10", b"9" * 400)
        ),
    ],
)
def test_an_invalid_body_is_answered_400_and_charges_nothing(http: httpx.Client, key: str, body: bytes) -> None:
    response = http.post("/v1/payments", content=body, headers={"Idempotency-Key": key})
    assert checked(response, "post", "/v1/payments")["status"] == 400
    assert http.get(f"/v1/payments/{key}").status_code == 404


@pytest.mark.parametrize("key", ["", "a b", "a/b", "x" * 65, "é", "a%2Fb", "a:b"])
def test_an_invalid_key_is_answered_400(http: httpx.Client, key: str) -> None:
    response = http.post("/v1/payments", json=BODY, headers={b"Idempotency-Key": key.encode()})
    assert checked(response, "post", "/v1/payments")["status"] == 400


def test_a_missing_key_is_answered_400(http: httpx.Client) -> None:
    assert checked(http.post("/v1/payments", json=BODY), "post", "/v1/payments")["status"] == 400


def test_an_invalid_key_of_a_void_is_answered_400(http: httpx.Client) -> None:
    response = http.post(f"/v1/payments/{'x' * 65}/void")
    assert checked(response, "post", "/v1/payments/{key}/void")["status"] == 400


@pytest.mark.parametrize("page", ["", "/history"])
def test_a_key_that_was_never_used_is_answered_404(http: httpx.Client, key: str, page: str) -> None:
    response = http.get(f"/v1/payments/{key}{page}")
    assert checked(response, "get", f"/v1/payments/{{key}}{page}")["status"] == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("POST", "/v2/payments", 404),
        ("GET", "/v1/payments/a/b/c", 404),
        ("PUT", "/v1/payments", 405),
        ("DELETE", "/v1/payments/a", 405),
        ("GET", "/v1/payments/a/void", 405),
        ("POST", "/simulator/faults", 405),
        ("PATCH", "/v1/payments", 405),
    ],
)
def test_another_page_or_method_is_refused(http: httpx.Client, method: str, path: str, status: int) -> None:
    response = http.request(method, path)
    assert (response.status_code, response.json()["status"]) == (status, status)


def test_a_body_of_two_mebibytes_is_refused(http: httpx.Client, key: str) -> None:
    body = b'{"amount": "' + b"1" * (2 << 20) + b'", "currency": "EUR"}'
    response = http.post("/v1/payments", content=body, headers={"Idempotency-Key": key})
    assert response.status_code == 413
    assert http.get(f"/v1/payments/{key}").status_code == 404


def test_the_health_pages_answer_also_while_the_provider_is_down(http: httpx.Client, running: Simulator) -> None:
    running.change_faults(down=True)
    assert [http.get(page).text for page in ("/livez", "/readyz")] == ["ok\n", "ok\n"]


def test_with_an_api_key_every_other_key_is_answered_401(tmp_path_factory: pytest.TempPathFactory, key: str) -> None:
    folder = tmp_path_factory.mktemp("api-key")
    with simulator(folder, PAYMENT_API_KEY="right") as running, httpx.Client(base_url=running.url) as http:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}):
            response = http.post("/v1/payments", json=BODY, headers={"Idempotency-Key": key, **headers})
            assert checked(response, "post", "/v1/payments")["status"] == 401
        assert http.get("/v1/payments").status_code == 401
        right = {"Authorization": "Bearer right"}
        assert http.get("/v1/payments", headers=right).json()["payments"] == []
        assert http.post("/v1/payments", json=BODY, headers={"Idempotency-Key": key, **right}).status_code == 200
        assert http.get("/livez").status_code == 200
