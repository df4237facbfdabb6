"""Fixtures: a trusted and an untrusted certificate authority, and the three servers with TLS and passwords."""

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import redis
import trustme
from confluent_kafka.admin._scram import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from cryptography.hazmat.primitives import serialization
from msgspec import Struct
from psycopg.conninfo import conninfo_to_dict

from orderstream.local.processes import ports
from tests.integration.security.tls_proxy import tls_proxy
from tests.support.brokers import broker, java
from tests.support.databases import Databases
from tests.support.servers import Servers

USER, PASSWORD = "orders", "a,b=c"
"""The password has a comma and an equals sign, because KAFKA_OPTIONS and URLs must be able to carry both."""


class Certificates(Struct, frozen=True):
    """PEM files: the trusted authority, the untrusted one, and the servers' key with its chain, for `localhost`."""

    trusted: Path
    untrusted: Path
    server: Path

    def context(self) -> ssl.SSLContext:
        """Return the TLS context of a server."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(self.server)
        return made


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """New certificates that are valid for `localhost` only."""
    folder = tmp_path_factory.mktemp("certificates")
    made = Certificates(folder / "trusted.pem", folder / "untrusted.pem", folder / "server.pem")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(made.trusted)
    trustme.CA().cert_pem.write_to_path(made.untrusted)
    issued = authority.issue_cert("localhost")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    made.server.write_bytes(key + b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return made


_CLUSTER_ID = "5L6g3nShT_eMCtK__X86sw"
_SECURED = """
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller},SECURED://127.0.0.1:{secured}
advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SECURED://localhost:{secured}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURED:SASL_SSL
listener.name.secured.ssl.keystore.type=PEM
listener.name.secured.ssl.keystore.location={server}
listener.name.secured.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.secured.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
  user_{user}="{password}";
listener.name.secured.scram-sha-512.sasl.jaas.config=\
  org.apache.kafka.common.security.scram.ScramLoginModule required;
log.dirs={folder}/data
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=4194304
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
"""


@pytest.fixture(scope="session")
def secured_brokers(
    kafka_brokers: str, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a broker with SASL PLAIN and SCRAM-SHA-512 over TLS. `kafka_brokers` has fetched the jars."""
    folder = tmp_path_factory.mktemp("kafka")
    chosen = ports.pick(["plain", "controller", "secured"], {})
    properties = folder / "server.properties"
    properties.write_text(
        _SECURED.format(**chosen, server=certificates.server, folder=folder, user=USER, password=PASSWORD)
    )
    subprocess.run(
        java(
            "kafka.tools.StorageTool", "format", "--standalone", "-t", "5L6g3nShT_eMCtK__X86sw", "-c", str(properties)
        ),
        check=True,
        capture_output=True,
        timeout=60,
    )
    with broker(properties, f"127.0.0.1:{chosen['plain']}", folder / "broker.log") as admin:
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        made = admin.alter_user_scram_credentials([UserScramCredentialUpsertion(USER, scram, PASSWORD.encode())])
        for future in made.values():
            future.result(10)
        yield f"localhost:{chosen['secured']}"


@pytest.fixture(scope="session")
def secured_postgres(servers: Servers, certificates: Certificates) -> Iterator[str]:
    """`host:port` of a TLS proxy for the shared PostgreSQL, where USER needs PASSWORD."""
    with psycopg.connect(servers.postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {USER} SUPERUSER LOGIN PASSWORD '{PASSWORD}'".encode())
        shown = connection.execute("SHOW hba_file").fetchone()
        assert shown
        rules = Path(shown[0])
        before = rules.read_text(encoding="utf-8")
        rules.write_text(f"host all {USER} 127.0.0.1/32 scram-sha-256\n{before}", encoding="utf-8")
        connection.execute("SELECT pg_reload_conf()")
        port = int(str(conninfo_to_dict(servers.postgres_url)["port"]))
        with tls_proxy(port, certificates.context(), postgres=True) as secured:
            yield f"localhost:{secured}"
        rules.write_text(before, encoding="utf-8")
        connection.execute("SELECT pg_reload_conf()")
        connection.execute(f"DROP ROLE {USER}".encode())


@pytest.fixture
def secured_database(secured_postgres: str, databases: Databases) -> Iterator[str]:
    """`host:port/name` of a database of this test behind the TLS proxy."""
    with databases.migrated() as url:
        yield f"{secured_postgres}/{url.rpartition('/')[2]}"


@pytest.fixture
def secured_redis(redis_url: str, certificates: Certificates) -> Iterator[str]:
    """`host:port` of a TLS proxy for the shared Valkey, where USER needs PASSWORD."""
    with redis.Redis.from_url(redis_url) as client:
        client.acl_setuser(USER, enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], categories=["+@all"])
        port: int = client.connection_pool.connection_kwargs["port"]
        with tls_proxy(port, certificates.context()) as secured:
            yield f"localhost:{secured}"
        client.acl_deluser(USER)


def kafka_options(certificate: Path, mechanism: str = "PLAIN", password: str = PASSWORD) -> dict[str, str]:
    """Return KAFKA_OPTIONS for the secured broker. The client trusts `certificate`."""
    return {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(certificate),
        "sasl.mechanism": mechanism,
        "sasl.username": USER,
        "sasl.password": password,
    }


def postgres_url(address: str, certificate: Path, password: str = PASSWORD) -> str:
    """Return POSTGRES_URL for the address `host:port/name`."""
    return f"postgresql://{USER}:{quote(password)}@{address}?sslmode=verify-full&sslrootcert={certificate}"


def redis_url_of(address: str, certificate: Path, password: str = PASSWORD) -> str:
    """Return REDIS_URL for the address `host:port`."""
    return f"rediss://{USER}:{quote(password)}@{address}/0?ssl_ca_certs={certificate}"
