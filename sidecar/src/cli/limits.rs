//! Limits that cannot be meant: they are refused at the start, by the name of their option.

use std::time::Duration;

use super::args::SidecarArgs;

/// A name of a model, a JSON object around it, and a prompt before it should fit.
const ATTRIBUTION_MIN_BYTES: u64 = 4 << 10;
/// As much may be held for every request that waits.
const ATTRIBUTION_MAX_BYTES: u64 = 1 << 30;

/// An option has a value that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option} {value}: {problem}")]
pub struct UnusableLimit {
    option: &'static str,
    value: String,
    problem: String,
}

/// # Errors
/// For the first option whose value cannot be meant.
pub fn check_limits(args: &SidecarArgs) -> Result<(), UnusableLimit> {
    let requests = &args.requests;

    let attribution = ATTRIBUTION_MIN_BYTES..=ATTRIBUTION_MAX_BYTES;
    if !attribution.contains(&requests.attribution_bytes) {
        let problem =
            "it must be from 4KiB to 1GiB: a name of a model must fit, and every request that waits may hold as much";
        return Err(unusable("--attribution-bytes", requests.attribution_bytes, problem));
    }

    for (option, number, problem) in [
        ("--max-body", requests.max_body, "it must be at least 1: no request could have a body"),
        ("--max-queue", requests.max_queue as u64, "it must be at least 1: no request could wait for its model"),
        ("--concurrency", requests.concurrency as u64, "it must be at least 1: no request could use its model"),
        ("--max-connections", requests.max_connections as u64, "it must be at least 1: no client could connect"),
        ("--port", args.process.port.map_or(1, u64::from), "it must be at least 1"),
        ("--busy-port", args.busy_port.map_or(1, u64::from), "it must be at least 1"),
    ] {
        if number == 0 {
            return Err(unusable(option, number, problem));
        }
    }

    let second = Duration::from_secs(1);
    for (option, duration, least) in [
        ("--body-stall", requests.body_stall, second),
        ("--client-stall", requests.client_stall.0.unwrap_or(Duration::MAX), second),
        ("--socket-idle", requests.socket_idle, second),
        ("--keep-alive", requests.keep_alive, second),
        ("--connect-timeout", requests.connect_timeout, Duration::from_millis(10)),
        ("--upstream-idle", requests.upstream_idle, Duration::from_millis(10)),
        ("--poll-interval", args.life.poll_interval, Duration::from_millis(10)),
        ("--sample-interval", args.memory.sample_interval, Duration::from_millis(10)),
    ] {
        if duration < least {
            return Err(unusable(option, format!("{duration:?}"), &format!("it must be at least {least:?}")));
        }
    }
    Ok(())
}

fn unusable(option: &'static str, value: impl ToString, problem: &str) -> UnusableLimit {
    UnusableLimit { option, value: value.to_string(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::args::SidecarCli;
    use super::*;

    fn check(more: &[&str]) -> Result<(), String> {
        let line = ["hush-sidecar", "--app", "ollama"];
        let args = SidecarCli::read(line.iter().chain(more)).unwrap().args;
        check_limits(&args).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_and_sensible_limits_are_accepted() {
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(
            check(&[
                "--attribution-bytes",
                "4KiB",
                "--body-stall",
                "1s",
                "--between-bytes-timeout",
                "1s",
                "--client-stall",
                "0"
            ]),
            Ok(())
        );
    }

    #[test]
    fn nonsense_is_refused_by_the_name_of_its_option() {
        for (option, value) in [
            ("--attribution-bytes", "1KiB"),
            ("--attribution-bytes", "2GiB"),
            ("--max-body", "0"),
            ("--max-queue", "0"),
            ("--concurrency", "0"),
            ("--max-connections", "0"),
            ("--port", "0"),
            ("--busy-port", "0"),
            ("--body-stall", "0"),
            ("--client-stall", "100ms"),
            ("--socket-idle", "100ms"),
            ("--keep-alive", "0"),
            ("--connect-timeout", "0"),
            ("--upstream-idle", "0"),
            ("--poll-interval", "0"),
            ("--sample-interval", "1ms"),
        ] {
            let error = check(&[option, value]).unwrap_err();
            assert!(error.starts_with(&format!("{option} ")) && error.contains("it must be "), "{error}");
        }
    }
}
