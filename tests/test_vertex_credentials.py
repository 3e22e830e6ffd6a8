"""Whose credentials the vertex backend uses, and where they go."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from distillctl_vertex.backend import VertexBackend
from distillctl_vertex.settings import VertexSettings
from support.backends import problems
from support.vertex import env, opened, rehearsal, settings

from distillctl.jobs import new_token
from distillctl.sandbox.vertex import VertexPart


@pytest.fixture
def sandbox(tmp_path):
    with rehearsal(tmp_path) as sandbox:
        yield sandbox


class TokenServer(BaseHTTPRequestHandler):
    """What Google's token endpoint does for a service account."""

    def do_POST(self):
        assert b"assertion=" in self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"access_token": "exchanged-token", "expires_in": 3600,
                           "token_type": "Bearer"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args): ...


@pytest.fixture
def service_account(tmp_path, monkeypatch):
    """Application Default Credentials of a service account whose tokens come from loopback."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with HTTPServer(("127.0.0.1", 0), TokenServer) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        path = tmp_path / "account.json"
        path.write_text(json.dumps({
            "type": "service_account", "project_id": "sandbox-project", "private_key_id": "1",
            "private_key": key.decode(), "client_email": "tuner@sandbox-project.iam.gserviceaccount.com",
            "client_id": "1", "token_uri": f"http://127.0.0.1:{server.server_address[1]}/token"}))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        yield
        server.shutdown()


def test_google_gets_application_default_credentials(sandbox, tmp_path, job, service_account, monkeypatch):
    monkeypatch.setattr(VertexSettings, "is_here", False)  # the sandbox plays Google's part
    seen = []
    account = VertexPart.account
    monkeypatch.setattr(VertexPart, "account", lambda self, call: seen.append(call.bearer()) or account(
        self, call))
    backend = opened(sandbox, tmp_path, token=None)
    handle = backend.submit(job, backend.stage(job), new_token())
    assert backend.poll(handle, None).state == "queued"
    assert set(seen) == {"exchanged-token"} and "tuner" not in handle.account


def test_the_sandbox_never_sees_application_default_credentials(sandbox, tmp_path, job, service_account):
    assert "VERTEX_SANDBOX_TOKEN is not set" in problems(opened(sandbox, tmp_path, token=None).preflight(job))


def test_without_credentials_preflight_says_how_to_get_some(tmp_path, job, monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nowhere.json"))
    found = VertexBackend(settings(None), env(tmp_path)).preflight(job)
    assert "gcloud auth application-default login" in problems(found)
