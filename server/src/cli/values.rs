//! Values of options, parsed once at the edge: the same parser reads the flag and the variable, and its message says
//! what is expected.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::http::uri::Authority;
use hush_whisper::language::LanguageChoice;

use crate::gpu::{CudaDevice, GpuRef};

/// What a value should have been, for the person who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub String);

fn expected<T>(what: impl Into<String>) -> Result<T, ValueError> {
    Err(ValueError(what.into()))
}

/// A word out of a fixed set: names, parser and display from one list.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_meta])* $variant,)+ }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl FromStr for $name {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, ValueError> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => expected(format!("expected one of {}", [$($word),+].join(", "))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// When a model stays in memory.
    Residency {
        /// Load at start, never leave.
        Resident = "resident",
        /// Load with the first request, leave after the idle timeout.
        Idle = "idle",
        /// Leave as soon as nothing is queued.
        OnDemand = "on-demand",
    }
}

words! {
    /// How the numbers of a model are stored.
    Precision {
        Fp32 = "fp32",
        Fp16 = "fp16",
        Int8 = "int8",
    }
}

words! {
    /// The engine of whisper-asr-webservice whose JSON `/asr` imitates.
    AsrEngine {
        OpenaiWhisper = "openai_whisper",
        FasterWhisper = "faster_whisper",
    }
}

words! {
    LogFormat {
        Text = "text",
        Json = "json",
    }
}

words! {
    OutputFormat {
        Txt = "txt",
        Vtt = "vtt",
        Srt = "srt",
        Tsv = "tsv",
        Json = "json",
    }
}

words! {
    TaskWord {
        Transcribe = "transcribe",
        Translate = "translate",
    }
}

impl From<Precision> for hush_whisper::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => Self::Fp32,
            Precision::Fp16 => Self::Fp16,
            Precision::Int8 => Self::Int8,
        }
    }
}

impl From<TaskWord> for hush_whisper::Task {
    fn from(task: TaskWord) -> Self {
        match task {
            TaskWord::Transcribe => Self::Transcribe,
            TaskWord::Translate => Self::Translate,
        }
    }
}

/// `auto`, or one precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrecisionChoice {
    /// `int8` on a CPU, `fp16` on CUDA, else what is installed.
    #[default]
    Auto,
    Exactly(Precision),
}

impl FromStr for PrecisionChoice {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text
                .parse()
                .map(Self::Exactly)
                .map_err(|_| ValueError("expected one of auto, fp32, fp16, int8".to_owned())),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA when the machine and the ONNX Runtime library both have it, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda(CudaDevice),
}

impl DeviceChoice {
    /// `cuda` without more.
    pub const CUDA: Self = Self::Cuda(CudaDevice::Index(0));
}

impl FromStr for DeviceChoice {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::CUDA),
            _ => {
                let gpu = text.strip_prefix("cuda:").and_then(|gpu| gpu.parse().ok());
                let gpu = gpu.map(|GpuChoice(gpu)| match gpu {
                    GpuRef::Index(index) => CudaDevice::Index(index),
                    GpuRef::Uuid(uuid) => CudaDevice::Uuid(uuid),
                });
                gpu.map(Self::Cuda).ok_or_else(|| {
                    let what = "expected cpu, cuda, cuda:N (N is the number of the GPU, from 0), cuda:UUID \
                                (as `nvidia-smi -L` prints it) or auto";
                    ValueError(what.to_owned())
                })
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => Device::Cpu.fmt(f),
            Self::Cuda(gpu) => Device::Cuda(*gpu).fmt(f),
        }
    }
}

/// A GPU by its number or its UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuChoice(pub GpuRef);

impl FromStr for GpuChoice {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let index = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let gpu = index.map(GpuRef::Index).or_else(|| text.parse().ok().map(GpuRef::Uuid));
        gpu.map(Self).ok_or_else(|| {
            let what = "expected the number of a GPU, from 0, or its UUID as `nvidia-smi -L` prints it";
            ValueError(what.to_owned())
        })
    }
}

/// A share of a whole: `95%`; `off` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percent(pub Option<u8>);

impl FromStr for Percent {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError("expected a percentage from 1% to 99%, such as 95%, or off".to_owned());
        if text == "off" {
            return Ok(Self(None));
        }
        let number: u8 = text.strip_suffix('%').ok_or_else(wrong)?.parse().map_err(|_| wrong())?;
        if (1..100).contains(&number) { Ok(Self(Some(number))) } else { Err(wrong()) }
    }
}

/// Where the engine will run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    Cuda(CudaDevice),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(CudaDevice::Index(index)) => write!(f, "cuda:{index}"),
            Self::Cuda(CudaDevice::Uuid(uuid)) => write!(f, "cuda:{uuid}"),
        }
    }
}

/// `true` or `false`, and the other usual spellings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch(pub bool);

impl FromStr for Switch {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(Self(true)),
            "false" | "0" | "no" | "off" => Ok(Self(false)),
            _ => expected("expected true or false"),
        }
    }
}

/// A duration in the form of the Gateway API (GEP-2257): `90s`, `1h30m`, `500ms`; a plain number is seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError("expected a duration such as 90s, 5m, 1h30m or 500ms, or whole seconds".to_owned());
        if text.is_empty() {
            return Err(wrong());
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(|seconds| Self(Duration::from_secs(seconds))).map_err(|_| wrong());
        }
        let (mut rest, mut total, mut parts) = (text, Duration::ZERO, 0);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            // The form allows four parts of five digits.
            if !(1..=5).contains(&digits) || parts == 4 {
                return Err(wrong());
            }
            let (number, tail) = rest.split_at(digits);
            let number: u64 = number.parse().map_err(|_| wrong())?;
            let unit_length = tail.bytes().take_while(|byte| !byte.is_ascii_digit()).count();
            let (unit, tail) = tail.split_at(unit_length);
            total += match unit {
                "h" => Duration::from_secs(number * 3600),
                "m" => Duration::from_secs(number * 60),
                "s" => Duration::from_secs(number),
                "ms" => Duration::from_millis(number),
                _ => return Err(wrong()),
            };
            rest = tail;
            parts += 1;
        }
        Ok(Self(total))
    }
}

/// A size in bytes: `4GiB`, `512MiB`, `100MB`, Kubernetes' `4Gi`, or a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError("expected a size such as 4GiB, 512MiB or 100MB, or whole bytes".to_owned());
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let factor: u64 = match unit.trim_start() {
            "" | "B" => 1,
            "Ki" | "KiB" => 1 << 10,
            "Mi" | "MiB" => 1 << 20,
            "Gi" | "GiB" => 1 << 30,
            "Ti" | "TiB" => 1 << 40,
            "k" | "K" | "kB" | "KB" => 1_000,
            "M" | "MB" => 1_000_000,
            "G" | "GB" => 1_000_000_000,
            "T" | "TB" => 1_000_000_000_000,
            _ => return Err(wrong()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(wrong)
    }
}

/// An address to listen on: `0.0.0.0:9000`, `[::]:9000`, `localhost:9000`, or `:9000` for every IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub SocketAddr);

impl FromStr for Listen {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong =
            || ValueError("expected an address and a port, such as 0.0.0.0:9000, [::1]:9000 or :9000".to_owned());
        if let Ok(address) = text.parse() {
            return Ok(Self(address));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let host = match host {
            "" => Ipv4Addr::UNSPECIFIED,
            "localhost" => Ipv4Addr::LOCALHOST,
            _ => return Err(wrong()),
        };
        Ok(Self(SocketAddr::new(IpAddr::V4(host), port)))
    }
}

/// A filter of log lines, see [`hush_log::check_filter`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel(pub String);

impl FromStr for LogLevel {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        hush_log::check_filter(text).map_err(|error| ValueError(error.to_string()))?;
        Ok(Self(text.to_owned()))
    }
}

/// Where a page comes from, as browsers say it: `https://app.example.com`, or `*` for anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorsOrigin(pub HeaderValue);

impl CorsOrigin {
    const EXPECTED: &str = "expected an origin such as https://app.example.com or http://localhost:5173 (a scheme, a host and \
                            a port, without a path), or * for all";

    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

impl FromStr for CorsOrigin {
    type Err = ValueError;

    /// In the spelling of browsers: in lower case, without a slash at the end and without the port that the scheme has.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError(Self::EXPECTED.to_owned());
        let text = text.trim().to_ascii_lowercase();
        // `null` is a page from a file.
        if matches!(text.as_str(), "*" | "null") {
            return HeaderValue::try_from(text).map(Self).map_err(|_| wrong());
        }
        let (scheme, authority) = text.split_once("://").ok_or_else(wrong)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let authority = match scheme {
            "http" => authority.strip_suffix(":80").unwrap_or(authority),
            "https" => authority.strip_suffix(":443").unwrap_or(authority),
            _ => authority,
        };
        let parsed: Authority = authority.parse().map_err(|_| wrong())?;
        let is_plain = parsed.host() != "" && !authority.contains(['@', '*']) && !authority.ends_with(':');
        if scheme.is_empty() || !is_plain {
            return Err(wrong());
        }
        HeaderValue::try_from(format!("{scheme}://{authority}")).map(Self).map_err(|_| wrong())
    }
}

/// The language that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Language(pub LanguageChoice);

impl FromStr for Language {
    type Err = ValueError;

    /// Empty is `auto`.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text.trim().is_empty() {
            return Ok(Self(LanguageChoice::Auto));
        }
        match LanguageChoice::parse(text) {
            Some(choice) => Ok(Self(choice)),
            None => expected("expected a code such as en, an English name such as english, or auto"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for wrong in
            ["", "localhost:5173", "https://", "https://a/b", "https://*.example.com", "https://a b", "http://u@h"]
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
        let seconds = |text: &str| text.parse::<Span>().map(|span| span.0.as_secs_f64());
        assert_eq!(seconds("300"), Ok(300.0));
        assert_eq!(seconds("0"), Ok(0.0));
        assert_eq!(seconds("0s"), Ok(0.0));
        assert_eq!(seconds("90s"), Ok(90.0));
        assert_eq!(seconds("5m"), Ok(300.0));
        assert_eq!(seconds("1h30m"), Ok(5400.0));
        assert_eq!(seconds("1h2m3s4ms"), Ok(3723.004));
        assert_eq!(seconds("500ms"), Ok(0.5));
        for bad in [
            "",
            "-1",
            "-5m",
            "5 m",
            "1.5h",
            "m",
            "5x",
            "1h2m3s4ms5ms",
            "123456s",
            "5m30",
            "５m",
            "99999999999999999999",
        ] {
            let error = bad.parse::<Span>().expect_err(bad);
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
        let address = |text: &str| text.parse::<Listen>().map(|listen| listen.0.to_string()).ok();
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
        assert_eq!("idle".parse(), Ok(Residency::Idle));
        assert_eq!("on-demand".parse(), Ok(Residency::OnDemand));
        assert_eq!("x".parse::<Residency>(), Err(ValueError("expected one of resident, idle, on-demand".into())));
        assert_eq!("auto".parse(), Ok(PrecisionChoice::Auto));
        assert_eq!("int8".parse(), Ok(PrecisionChoice::Exactly(Precision::Int8)));
        assert!("int4".parse::<PrecisionChoice>().is_err());
        for residency in Residency::ALL {
            assert_eq!(residency.to_string().parse(), Ok(*residency));
        }
    }

    #[test]
    fn switches_and_levels() {
        assert_eq!("YES".parse(), Ok(Switch(true)));
        assert_eq!("off".parse(), Ok(Switch(false)));
        assert!("maybe".parse::<Switch>().is_err());
        assert!("info".parse::<LogLevel>().is_ok());
        assert!("info,hush_server=debug".parse::<LogLevel>().is_ok());
        assert!("verbose".parse::<LogLevel>().is_err());
        assert!("hush=loud".parse::<LogLevel>().is_err());
    }
}
