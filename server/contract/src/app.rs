//! What a program says of the app that it governs: words of the labels of [`crate::metrics::APP_FAMILIES`].

/// The app of a server that reports no [`crate::metrics::APP_INFO`]: `hush-server`, whose models are Whisper models.
pub const WHISPER: &str = "whisper";

/// How the models of an app are loaded and unloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppMode {
    /// By requests to the app, which runs all the time.
    Api,
    /// By starting and stopping the app.
    Process,
}

impl AppMode {
    pub const ALL: [Self; 2] = [Self::Api, Self::Process];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Process => "process",
        }
    }
}

/// Whether the sidecar governs its app, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppGovernance {
    /// The app is the expected one, and the flags that governing it needs are set. In process mode also while the app is
    /// stopped because its model is unloaded.
    Governed,
    /// The app has not identified itself since the sidecar started.
    Unidentified,
    /// The app does not answer.
    Unreachable,
    /// It is another app, or a flag is missing.
    Unsuitable,
}

impl AppGovernance {
    pub const ALL: [Self; 4] = [Self::Governed, Self::Unidentified, Self::Unreachable, Self::Unsuitable];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Governed => "governed",
            Self::Unidentified => "unidentified",
            Self::Unreachable => "unreachable",
            Self::Unsuitable => "unsuitable",
        }
    }
}
