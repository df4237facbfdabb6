"""The routes `/enter` (a token for a cookie), `/leave`, and `/name` (what the visitor calls itself)."""

from urllib.parse import parse_qsl, quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orderstream.console.web.access import NAME_MAX_CHARACTERS, SESSION_SECONDS, Access
from orderstream.console.web.guard import NAME_COOKIE, Guard
from orderstream.console.web.pages import Templates, form_of, local_address, page_routes, seen_other


class SessionPages:
    """Begins and ends the sessions of browsers."""

    def __init__(self, access: Access, templates: Templates, guard: Guard) -> None:
        self._access = access
        self._templates = templates
        self._guard = guard

    def routes(self) -> list[Route]:
        """Return the routes."""
        return page_routes(
            [
                ("GET", "/enter", self.enter),
                ("POST", "/enter", self.enter),
                ("POST", "/leave", self.leave),
                ("POST", "/name", self.rename),
            ]
        )

    async def enter(self, request: Request) -> Response:
        """Begin a session with the token of the query or of the form. Without a token, show the form.

        A browser sends a SameSite=Strict cookie only with requests that begin on the console itself. So the answer is a
        page that goes on to the overview, and not a redirect.
        """
        if request.method == "POST":
            fields = await form_of(request)
        else:
            fields = dict(parse_qsl(request.url.query))
        token, goes_on_to = fields.get("token", "").strip(), local_address(fields.get("next", "/"))
        if not token:
            return self._templates.page(request, "enter.html", problem=None, goes_on_to=goes_on_to)
        role = self._access.role_of(token)
        if role is None:
            raise self._guard.refused()
        response = self._templates.page(request, "entered.html", goes_on_to=goes_on_to)
        response.headers["referrer-policy"] = "no-referrer"
        self._set_cookie(request, response, self._access.session_cookie, self._access.new_session(role))
        return response

    async def leave(self, _request: Request) -> Response:
        """End the session of this browser."""
        response = seen_other("/enter")
        response.delete_cookie(self._access.session_cookie, httponly=True, samesite="strict")
        return response

    async def rename(self, request: Request) -> Response:
        """Store in a cookie what the visitor calls itself."""
        name = (await form_of(request)).get("name", "").strip()[:NAME_MAX_CHARACTERS]
        response = seen_other("/")
        self._set_cookie(request, response, NAME_COOKIE, quote(name))
        return response

    @staticmethod
    def _set_cookie(request: Request, response: Response, name: str, value: str) -> None:
        """Set a cookie. If a proxy says that the browser uses TLS, the browser must never send it without."""
        response.set_cookie(
            name,
            value,
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.headers.get("x-forwarded-proto") == "https",
        )
