use super::*;
use crate::gpu::CudaDevice;

#[test]
fn origins_are_spelt_as_browsers_spell_them() {
    let parse = |text: &str| text.parse::<CorsOrigin>().map(|origin| origin.as_str().to_owned());
    for (given, expected) in [
        ("*", "*"),
        ("null", "null"),
        ("http://localhost:5173", "http://localhost:5173"),
        ("http://localhost:5173/", "http://localhost:5173"),
        ("HTTPS://App.Example.com:443", "https://app.example.com"),
        ("http://[::1]:80", "http://[::1]"),
        ("tauri://localhost", "tauri://localhost"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ] {
        assert_eq!(parse(given), Ok(expected.to_owned()), "{given}");
    }

    for wrong in ["", "localhost:5173", "https://", "https://a/b", "https://*.example.com", "https://a b", "http://u@h"]
    {
        assert!(parse(wrong).unwrap_err().0.contains("https://app.example.com"), "{wrong}");
    }
}

#[test]
fn languages_are_read_in_all_their_spellings() {
    for (given, expected) in [("", None), ("auto", None), ("de", Some("de")), ("pt_BR", Some("pt"))] {
        let language: Language = given.parse().unwrap();
        assert_eq!(language.0.into_code().as_deref(), expected, "{given}");
    }

    assert!("klingon".parse::<Language>().unwrap_err().0.contains("english"));
}

#[test]
fn durations() {
    let seconds = |text: &str| text.parse::<DurationArg>().map(|duration| duration.0.as_secs_f64());
    assert_eq!(seconds("300"), Ok(300.0));
    assert_eq!(seconds("0"), Ok(0.0));
    assert_eq!(seconds("0s"), Ok(0.0));
    assert_eq!(seconds("90s"), Ok(90.0));
    assert_eq!(seconds("5m"), Ok(300.0));
    assert_eq!(seconds("1h30m"), Ok(5400.0));
    assert_eq!(seconds("1h2m3s4ms"), Ok(3723.004));
    assert_eq!(seconds("500ms"), Ok(0.5));

    for bad in
        ["", "-1", "-5m", "5 m", "1.5h", "m", "5x", "1h2m3s4ms5ms", "123456s", "5m30", "５m", "99999999999999999999"]
    {
        let error = bad.parse::<DurationArg>().expect_err(bad);
        assert!(error.0.contains("1h30m"), "{bad}: {error}");
    }
}

#[test]
fn sizes() {
    let bytes = |text: &str| text.parse::<ByteSize>().map(|size| size.0).ok();
    assert_eq!(bytes("4GiB"), Some(4 << 30));
    assert_eq!(bytes("4Gi"), Some(4 << 30));
    assert_eq!(bytes("512MiB"), Some(512 << 20));
    assert_eq!(bytes("100MB"), Some(100_000_000));
    assert_eq!(bytes("64 KiB"), Some(65_536));
    assert_eq!(bytes("1048576"), Some(1_048_576));
    assert_eq!(bytes("0"), Some(0));

    for bad in ["", "GiB", "-1", "1.5GiB", "4gib", "4GiBs", "99999999999TiB"] {
        assert_eq!(bytes(bad), None, "{bad}");
    }
}

#[test]
fn addresses() {
    let address = |text: &str| text.parse::<ListenAddress>().map(|address| address.0.to_string()).ok();
    assert_eq!(address("0.0.0.0:9000").as_deref(), Some("0.0.0.0:9000"));
    assert_eq!(address("[::]:9000").as_deref(), Some("[::]:9000"));
    assert_eq!(address(":9000").as_deref(), Some("0.0.0.0:9000"));
    assert_eq!(address("localhost:0").as_deref(), Some("127.0.0.1:0"));

    for bad in ["", "9000", "0.0.0.0", "host.example:9000", ":70000", "::1:x"] {
        assert_eq!(address(bad), None, "{bad}");
    }
}

#[test]
fn devices() {
    assert_eq!("cpu".parse(), Ok(DeviceChoice::Cpu));
    assert_eq!("cuda".parse(), Ok(DeviceChoice::CUDA));
    assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(CudaDevice::Index(3))));

    let uuid = "cuda:GPU-8d1e1c0b-0123-4567-89ab-0123456789ab";
    assert_eq!(uuid.parse::<DeviceChoice>().map(|device| device.to_string()).as_deref(), Ok(uuid));
    let short = "cuda:GPU-8d1e";
    assert_eq!(short.parse::<DeviceChoice>().map(|device| device.to_string()).as_deref(), Ok(short));
    assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));

    for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cuda:GPU-", "cuda:MIG-8d1e", "cuda:99999999999"] {
        assert!(bad.parse::<DeviceChoice>().is_err(), "{bad}");
    }
}

#[test]
fn shares() {
    assert_eq!("95%".parse(), Ok(Percent(Some(95))));
    assert_eq!("off".parse(), Ok(Percent(None)));

    for bad in ["", "95", "0.95", "0%", "100%", "300%", "-5%", "%"] {
        assert!(bad.parse::<Percent>().is_err(), "{bad}");
    }
}

#[test]
fn words_say_what_they_expect() {
    assert_eq!("idle".parse(), Ok(ResidencyChoice::Idle));
    assert_eq!("on-demand".parse(), Ok(ResidencyChoice::OnDemand));
    assert_eq!("x".parse::<ResidencyChoice>(), Err(ValueError("expected one of resident, idle, on-demand".into())));
    assert_eq!("auto".parse(), Ok(PrecisionChoice::Auto));
    assert_eq!("int8".parse(), Ok(PrecisionChoice::Exactly(PrecisionWord::Int8)));
    assert!("int4".parse::<PrecisionChoice>().is_err());

    for residency in ResidencyChoice::ALL {
        assert_eq!(residency.to_string().parse(), Ok(*residency));
    }
}

#[test]
fn switches_and_levels() {
    assert_eq!("YES".parse(), Ok(Switch(true)));
    assert_eq!("off".parse(), Ok(Switch(false)));
    assert!("maybe".parse::<Switch>().is_err());

    assert!("info".parse::<LogFilter>().is_ok());
    assert!("info,hush_server=debug".parse::<LogFilter>().is_ok());
    assert!("verbose".parse::<LogFilter>().is_err());
    assert!("hush=loud".parse::<LogFilter>().is_err());
}
