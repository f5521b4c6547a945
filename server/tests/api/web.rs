//! The page, the reference, and the files of both.

use hush_server::api::ApiConfig;
use hush_server::serve::ServeOptions;

use crate::support::{ApiFixture, FakeModel, RawResponse, golden};

const BROWSER: &str = "text/html,application/xhtml+xml,*/*;q=0.8";

async fn browse(server: &ApiFixture, path: &str) -> RawResponse {
    server.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\nAccept: {BROWSER}\r\n\r\n")).await
}

/// What a page refers to, in its own words.
fn references(page: &str) -> Vec<&str> {
    let attributes = ["src=\"", "href=\""];
    let mut found: Vec<_> = attributes
        .iter()
        .flat_map(|attribute| page.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()))
        .collect();
    found.retain(|reference| !reference.starts_with('#') && !reference.starts_with("data:"));
    found
}

#[tokio::test]
async fn a_browser_gets_the_page_and_a_program_the_reference() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let page = browse(&server, "/").await;
    assert_eq!((page.status.as_str(), page.headers["content-type"].as_str()), ("200 OK", "text/html; charset=utf-8"));
    for accept in ["*/*", "application/json"] {
        let answer = server.send(format!("GET / HTTP/1.1\r\nHost: h\r\nAccept: {accept}\r\n\r\n")).await;
        assert_eq!((answer.status.as_str(), answer.headers["location"].as_str()), ("307 Temporary Redirect", "/docs"));
    }
    let config = ApiConfig { web_ui: false, ..ApiConfig::default() };
    let server = ApiFixture::with(FakeModel::answering(golden()), config, ServeOptions::default()).await;
    let answer = browse(&server, "/").await;
    assert_eq!((answer.status.as_str(), answer.headers["location"].as_str()), ("307 Temporary Redirect", "/docs"));
}

#[tokio::test]
async fn pages_need_nothing_from_elsewhere() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    for path in ["/", "/docs"] {
        let page = browse(&server, path).await;
        let policy = &page.headers["content-security-policy"];
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; ") && !policy.contains("http"), "{policy}");
        assert_eq!(page.headers["cache-control"], "no-cache");
        assert!(!page.body.contains("{version}") && !page.body.contains("{languages}"));
        let mut files = 0;
        for reference in references(&page.body).into_iter().filter(|reference| *reference != ".") {
            // Relative: the server may live below a path of a proxy.
            assert!(!reference.contains("//") && !reference.starts_with('/'), "{reference}");
            let head = format!("HEAD /{reference} HTTP/1.1\r\nHost: h\r\n\r\n");
            let mut client = server.connect().await;
            client.write(head.as_bytes()).await;
            let answer = client.head().await;
            assert_eq!(answer.status, "200 OK", "{reference}");
            if reference.ends_with(".js") || reference.ends_with(".css") {
                files += 1;
                assert_eq!(answer.headers["cache-control"], "public, max-age=31536000, immutable", "{reference}");
                assert_eq!(answer.headers["x-content-type-options"], "nosniff");
            }
        }
        assert!(files >= 4, "{path} refers to {files} files");
    }
}

/// Each module that is imported is there, under the version of the page.
#[tokio::test]
async fn scripts_find_each_other() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let page = browse(&server, "/").await;
    let scripts: Vec<_> = references(&page.body).into_iter().filter(|name| name.ends_with(".js")).collect();
    let mut imports = 0;
    for script in &scripts {
        let text = server.get(&format!("/{script}")).await.body;
        for line in text.lines().filter(|line| line.starts_with("import ")) {
            let name = line.split("'./").nth(1).and_then(|rest| rest.split('\'').next()).unwrap();
            let folder = script.rsplit_once('/').unwrap().0;
            assert!(scripts.contains(&format!("{folder}/{name}").as_str()), "{script} imports {name}");
            imports += 1;
        }
    }
    assert!(imports >= 5, "{imports}");
}

#[tokio::test]
async fn an_old_version_is_gone() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    for path in ["/ui/0/app.js", "/docs/0/docs.js", "/ui/app.js"] {
        server.get(path).await.is_json("404 Not Found", r#"{"detail":"Not Found"}"#);
    }
}
