//! `/openapi.json` as others read it: by the validator of the OpenAPI project's Python community.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use hush_tests::{Server, fixtures, http};

const VALIDATE: &str = "
import json, sys
from openapi_spec_validator import OpenAPIV31SpecValidator
errors = list(OpenAPIV31SpecValidator(json.load(sys.stdin)).iter_errors())
for error in errors:
    print(error)
sys.exit(bool(errors))
";

#[test]
fn the_document_is_valid_openapi() -> Result<()> {
    let server = Server::start(&[])?;
    let document = http::get(server.api, "/openapi.json")?;
    assert_eq!(document.header("content-type"), Some("application/json"));
    let packages = fixtures::workspace().join(".hush/python");
    ensure!(packages.join("openapi_spec_validator").exists(), "the validator is missing: run `make test` once");
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let mut child = Command::new(python)
        .args(["-c", VALIDATE])
        .env("PYTHONPATH", packages)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no stdin")?.write_all(&document.body)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "not valid:\n{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

#[test]
fn the_page_can_be_turned_off() -> Result<()> {
    let ask = |server: &Server| {
        let request =
            format!("GET / HTTP/1.1\r\nHost: {}\r\nAccept: text/html\r\nConnection: close\r\n\r\n", server.api);
        http::exchange(server.api, request.as_bytes())
    };
    assert_eq!(ask(&Server::start(&[])?)?.status, 200);
    let without = ask(&Server::start(&["--web-ui", "false"])?)?;
    assert_eq!((without.status, without.header("location")), (307, Some("/docs")));
    Ok(())
}
