//! Certificates, keys and the review of tokens.

use std::path::PathBuf;

use super::*;

#[test]
fn token_review_takes_the_api_server_of_the_pod() {
    let pod = [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "6443")];
    let review = ["--admin-token-review", "--admin-account", "hush:controller"];
    let on = [&review[..], &["--pod-namespace", "media", "--pod-uid", "0b8a-1"]].concat();

    let review = resolved(&on, &pod).security.admin_token_review.unwrap();
    assert_eq!(
        (review.api.to_string().as_str(), review.audience.as_str()),
        ("10.96.0.1:6443", "hush-server/media/0b8a-1")
    );
    assert_eq!(review.pod_uid.as_deref(), Some("0b8a-1"));

    let dir = PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!((review.ca_file, review.token_file), (dir.join("ca.crt"), dir.join("token")));
    assert_eq!(resolved(&["--admin-account", "hush:controller"], &pod).security, SecuritySettings::default());

    let refused = |argv: &[&str], variables: &[(&str, &str)]| try_serve(argv, variables).unwrap_err().to_string();
    assert!(refused(&on, &[]).contains("KUBERNETES_SERVICE_HOST"));
    assert!(refused(&["--admin-token-review"], &pod).contains("--admin-account"));

    let bad_port = [pod[0], ("KUBERNETES_SERVICE_PORT", "tcp")];
    assert!(refused(&on, &bad_port).contains("KUBERNETES_SERVICE_PORT"));

    let plain = [pod[0], ("HUSH_KUBERNETES_API", "http://10.96.0.1")];
    assert!(refused(&on, &plain).contains("https://"));

    let account = [pod[0], ("HUSH_ADMIN_TOKEN_REVIEW", "true"), ("HUSH_ADMIN_ACCOUNT", "controller")];
    assert!(refused(&[], &account).contains("namespace:name"));

    assert!(refused(&["--tls-cert", "/c"], &[]).contains("--tls-key"));
    assert!(refused(&[], &[("HUSH_OPS_TLS_KEY", "/k")]).contains("--ops-tls-cert"));
}

#[test]
fn a_server_that_reviews_tokens_must_know_for_which_server_they_are_made() {
    let pod = [("KUBERNETES_SERVICE_HOST", "10.96.0.1")];
    let on = ["--admin-token-review", "--admin-account", "hush:controller"];
    let refused = |more: &[&str]| try_serve(&[&on[..], more].concat(), &pod).unwrap_err().to_string();

    assert!(refused(&[]).contains("--pod-namespace"));
    assert!(refused(&["--pod-uid", "0b8a-1"]).contains("need each other"));
    assert!(refused(&["--pod-uid", "0b8a-1", "--pod-namespace", "a/b"]).contains("the namespace must be"));
    assert!(refused(&["--pod-uid", "$(POD_UID)", "--pod-namespace", "media"]).contains("the pod's UID must be"));

    let own = resolved(&[&on[..], &["--admin-audience", "mine"]].concat(), &pod).security.admin_token_review.unwrap();
    assert_eq!((own.audience.as_str(), own.pod_uid), ("mine", None));
}
