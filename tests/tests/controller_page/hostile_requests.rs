//! Requests to the controller's listener that are meant to harm: of pages in the browser of a person who can reach it, and
//! of small texts that take much time or memory.

use std::time::Duration;

use super::*;

impl PageFixture {
    /// As a browser sends it.
    fn browse(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<http::Response> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        http::exchange(self.controller.ops, format!("{request}\r\n").as_bytes())
    }

    /// The most memory that the controller has held.
    fn peak_mib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.controller.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? >> 10)
    }
}

/// A page whose name was pointed at the loopback is of the controller's own origin for its browser.
#[test]
fn a_name_that_was_rebound_to_the_loopback_reads_and_sends_nothing() -> Result<()> {
    let stage = PageFixture::with_token()?;
    let host = format!("evil.example:{}", stage.controller.ops.port());
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/api/v1/state"),
        ("GET", "/api/v1/events"),
        ("GET", "/api/v1/explain?server=a/one"),
        ("GET", "/api/v1/policy?policy=a/test"),
        ("POST", "/api/v1/plan"),
        ("POST", "/api/v1/resume?policy=a/test"),
    ] {
        let headers = [("Host", host.as_str()), ("Sec-Fetch-Site", "same-origin"), ("X-Hush-Token", TOKEN)];
        let answer = stage.browse(method, path, &headers)?;
        assert_eq!((answer.status, &answer.json()?["code"]), (403, &json!("forbidden")), "{method} {path}");
        assert!(answer.text().contains("`evil.example") && answer.text().contains("--page-host"), "{}", answer.text());
    }
    for host in ["localhost", "127.0.0.1:1", "[::1]:9002", "10.0.0.7"] {
        assert_eq!(stage.browse("GET", "/api/v1/state", &[("Host", host)])?.status, 200, "{host}");
    }

    let named = PageFixture::new(&["--page-host", "hush.example"])?;
    assert_eq!(named.browse("GET", "/api/v1/state", &[("Host", "hush.example")])?.status, 200);
    assert_eq!(named.browse("GET", "/api/v1/state", &[("Host", "evil.example")])?.status, 403);
    Ok(())
}

/// Where the controller listens for others too, what comes from its own loopback is a `kubectl port-forward` or a person there.
#[test]
fn a_rebound_name_is_refused_also_where_others_may_come() -> Result<()> {
    let stage = PageFixture::new(&["--listen", "0.0.0.0:0"])?;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], stage.controller.ops.port()));
    let get = |host: &str| {
        let request = format!("GET /api/v1/state HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        http::exchange(address, request.as_bytes())
    };
    assert_eq!((get("evil.example:9002")?.status, get("localhost:9002")?.status), (403, 200));
    Ok(())
}

#[test]
fn a_page_of_another_origin_reads_and_sends_nothing() -> Result<()> {
    let stage = PageFixture::with_token()?;
    let host = stage.controller.ops.to_string();
    let own = format!("http://{host}");
    for (headers, is_answered) in [
        (&[("Origin", "http://evil.example")][..], false),
        (&[("Origin", "null")], false),
        (&[("Sec-Fetch-Site", "cross-site")], false),
        (&[("Sec-Fetch-Site", "same-site"), ("Origin", "http://127.0.0.1:8080")], false),
        (&[("Sec-Fetch-Site", "same-origin"), ("Origin", &own)], true),
        (&[("Origin", &own)], true),
        (&[("Sec-Fetch-Site", "none")], true),
    ] {
        let headers = [&[("Host", host.as_str()), ("X-Hush-Token", TOKEN)], headers].concat();
        for (method, path) in [("GET", "/api/v1/state"), ("POST", "/api/v1/resume?policy=a/test")] {
            let status = stage.browse(method, path, &headers)?.status;
            assert_eq!(status, if is_answered { 200 } else { 403 }, "{method} {path} {headers:?}");
        }
    }
    // A link to the page is one from another origin, and shows nothing to it.
    let link = [("Host", host.as_str()), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")];
    assert_eq!(stage.browse("GET", "/", &link)?.status, 200);
    Ok(())
}

/// The texts of a few hundred kilobytes that used to cost gigabytes and minutes.
fn costly() -> Vec<(&'static str, String)> {
    let wrong = |n: usize| {
        format!(
            "- {{apiVersion: gpu.hush.dev/v1beta1, kind: GpuModelPolicy, metadata: {{name: p{n}}}, spec: {{selector: \
             {{}}, priority: 5000000}}}}\n"
        )
    };
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..9 {
        let before = format!("*a{}", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", [before.as_str(); 8].join(", ")));
    }
    let large = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(100_000), vec!["*a"; 30_000].join(", "));
    let windows = "{cron: 0 25 * * *, duration: 1s, mode: Idle}, ".repeat(5000);
    let good = |n| policy("  mode: DryRun\n").replace("name: test", &format!("name: p{n}"));
    vec![
        ("empty documents", "---\n".repeat(65_000)),
        ("documents that are no policies", "---\na\n".repeat(40_000)),
        (
            "a list of mistakes",
            format!("apiVersion: v1\nkind: List\nitems:\n{}", (0..1800).map(wrong).collect::<String>()),
        ),
        ("aliases of aliases", bomb),
        ("aliases of a long text", large),
        ("windows without number", policy(&format!("  residency: {{schedule: [{windows}]}}\n"))),
        ("more policies than are tried", (0..101).map(good).collect::<Vec<_>>().join("---\n")),
        ("brackets", "[".repeat(250_000)),
    ]
}

#[test]
fn a_what_if_costs_no_more_than_its_length() -> Result<()> {
    let stage = PageFixture::with_token()?;
    let before = stage.peak_mib()?;
    for (what, text) in costly() {
        let begun = Instant::now();
        let answer = stage.post("plan", Some(TOKEN), &text)?;
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        // The smallest of them took minutes, or gigabytes.
        println!("{what}: {} bytes are refused after {:?}", text.len(), begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(8), "{what}: {:?}", begun.elapsed());
        assert!(answer.body.len() < 100_000, "{what}: an answer of {} bytes", answer.body.len());
    }
    let grown = stage.peak_mib()?.saturating_sub(before);
    println!("the controller's peak grew by {grown} MiB");
    assert!(grown < 100, "{grown} MiB more");

    // As many as are tried.
    let good = |n| policy("  mode: DryRun\n").replace("name: test", &format!("name: p{n}"));
    let all = stage.post("plan", Some(TOKEN), &(0..100).map(good).collect::<Vec<_>>().join("---\n"))?;
    assert_eq!(all.json()?["policies"].as_array().map(Vec::len), Some(100), "{}", all.text());
    Ok(())
}

#[test]
fn many_what_ifs_at_once_leave_the_controller_answering() -> Result<()> {
    let stage = PageFixture::with_token()?;
    let text = "---\n".repeat(65_000);
    let before = stage.peak_mib()?;
    std::thread::scope(|scope| {
        let posts: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| stage.post("plan", Some(TOKEN), &text).map(|answer| answer.status)))
            .collect();
        let mut slowest = Duration::ZERO;
        while posts.iter().any(|post| !post.is_finished()) {
            let begun = Instant::now();
            assert_eq!(http::get(stage.controller.ops, "/healthz")?.status, 200);
            slowest = slowest.max(begun.elapsed());
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("the slowest /healthz took {slowest:?}");
        assert!(slowest < Duration::from_secs(3), "{slowest:?}");
        for post in posts {
            let status = post.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            assert!(matches!(status, 400 | 503), "{status}");
        }
        anyhow::Ok(())
    })?;
    assert!(stage.peak_mib()? < before + 100);
    Ok(())
}
