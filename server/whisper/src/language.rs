//! Whisper's languages: the table of openai/whisper (`whisper/tokenizer.py`), in the order of the language tokens.

mod iso;

/// Code and lower-case English name. A model with n languages knows the first n.
pub const LANGUAGES: [(&str, &str); 100] = [
    ("en", "english"),
    ("zh", "chinese"),
    ("de", "german"),
    ("es", "spanish"),
    ("ru", "russian"),
    ("ko", "korean"),
    ("fr", "french"),
    ("ja", "japanese"),
    ("pt", "portuguese"),
    ("tr", "turkish"),
    ("pl", "polish"),
    ("ca", "catalan"),
    ("nl", "dutch"),
    ("ar", "arabic"),
    ("sv", "swedish"),
    ("it", "italian"),
    ("id", "indonesian"),
    ("hi", "hindi"),
    ("fi", "finnish"),
    ("vi", "vietnamese"),
    ("he", "hebrew"),
    ("uk", "ukrainian"),
    ("el", "greek"),
    ("ms", "malay"),
    ("cs", "czech"),
    ("ro", "romanian"),
    ("da", "danish"),
    ("hu", "hungarian"),
    ("ta", "tamil"),
    ("no", "norwegian"),
    ("th", "thai"),
    ("ur", "urdu"),
    ("hr", "croatian"),
    ("bg", "bulgarian"),
    ("lt", "lithuanian"),
    ("la", "latin"),
    ("mi", "maori"),
    ("ml", "malayalam"),
    ("cy", "welsh"),
    ("sk", "slovak"),
    ("te", "telugu"),
    ("fa", "persian"),
    ("lv", "latvian"),
    ("bn", "bengali"),
    ("sr", "serbian"),
    ("az", "azerbaijani"),
    ("sl", "slovenian"),
    ("kn", "kannada"),
    ("et", "estonian"),
    ("mk", "macedonian"),
    ("br", "breton"),
    ("eu", "basque"),
    ("is", "icelandic"),
    ("hy", "armenian"),
    ("ne", "nepali"),
    ("mn", "mongolian"),
    ("bs", "bosnian"),
    ("kk", "kazakh"),
    ("sq", "albanian"),
    ("sw", "swahili"),
    ("gl", "galician"),
    ("mr", "marathi"),
    ("pa", "punjabi"),
    ("si", "sinhala"),
    ("km", "khmer"),
    ("sn", "shona"),
    ("yo", "yoruba"),
    ("so", "somali"),
    ("af", "afrikaans"),
    ("oc", "occitan"),
    ("ka", "georgian"),
    ("be", "belarusian"),
    ("tg", "tajik"),
    ("sd", "sindhi"),
    ("gu", "gujarati"),
    ("am", "amharic"),
    ("yi", "yiddish"),
    ("lo", "lao"),
    ("uz", "uzbek"),
    ("fo", "faroese"),
    ("ht", "haitian creole"),
    ("ps", "pashto"),
    ("tk", "turkmen"),
    ("nn", "nynorsk"),
    ("mt", "maltese"),
    ("sa", "sanskrit"),
    ("lb", "luxembourgish"),
    ("my", "myanmar"),
    ("bo", "tibetan"),
    ("tl", "tagalog"),
    ("mg", "malagasy"),
    ("as", "assamese"),
    ("tt", "tatar"),
    ("haw", "hawaiian"),
    ("ln", "lingala"),
    ("ha", "hausa"),
    ("ba", "bashkir"),
    ("jw", "javanese"),
    ("su", "sundanese"),
    ("yue", "cantonese"),
];

/// Other names that the reference accepts.
const ALIASES: [(&str, &str); 12] = [
    ("burmese", "my"),
    ("valencian", "ca"),
    ("flemish", "nl"),
    ("haitian", "ht"),
    ("letzeburgesch", "lb"),
    ("pushto", "ps"),
    ("panjabi", "pa"),
    ("moldavian", "ro"),
    ("moldovan", "ro"),
    ("sinhalese", "si"),
    ("castilian", "es"),
    ("mandarin", "zh"),
];

/// The language of the speech, as given by a request or a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LanguageChoice {
    /// The language is detected.
    Auto,
    /// A code of [`LANGUAGES`].
    Code(&'static str),
}

impl LanguageChoice {
    /// Parses `auto`, a code for an undetermined language, or anything that [`code`] accepts.
    pub fn parse(given: &str) -> Option<Self> {
        let word = given.trim().to_ascii_lowercase();
        let is_auto = word == "auto" || iso::UNDETERMINED.contains(&word.as_str());
        if is_auto { Some(Self::Auto) } else { code(given).map(Self::Code) }
    }

    /// The code for the engine; `None`: the engine detects the language.
    pub fn into_code(self) -> Option<String> {
        match self {
            Self::Auto => None,
            Self::Code(code) => Some(code.to_owned()),
        }
    }
}

/// The lower-case English name of a language code.
pub fn name(code: &str) -> Option<&'static str> {
    LANGUAGES.iter().find(|(known, _)| *known == code).map(|(_, name)| *name)
}

/// The language code of `given`: a code (`de`, `ger`, `deu`), an English name or an alias, or a tag that begins with one of
/// these (`en-US`, `zh_Hans_CN`, `pt_BR.UTF-8`), in any case.
pub fn code(given: &str) -> Option<&'static str> {
    let given = given.trim().to_lowercase().replace('_', "-");
    let mut tag = given.as_str();

    loop {
        if let Some(code) = exact_code(tag) {
            return Some(code);
        }

        // The longest known prefix of a tag decides.
        (tag, _) = tag.rsplit_once(['-', '.', '@'])?;
    }
}

fn exact_code(given: &str) -> Option<&'static str> {
    LANGUAGES
        .iter()
        .find(|(code, _)| *code == given)
        .or_else(|| LANGUAGES.iter().find(|(_, name)| *name == given))
        .or_else(|| {
            let (_, code) = ALIASES.iter().chain(&iso::CODES).find(|(alias, _)| *alias == given)?;
            entry(code)
        })
        .map(|(code, _)| *code)
}

fn entry(code: &str) -> Option<&'static (&'static str, &'static str)> {
    LANGUAGES.iter().find(|(known, _)| *known == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_names_and_aliases_mean_the_same_language() {
        for given in ["de", "DE", "German", "german"] {
            assert_eq!(code(given), Some("de"));
        }

        assert_eq!(code("Castilian"), Some("es"));
        assert_eq!(code("mandarin"), Some("zh"));
        assert_eq!(code("haitian creole"), Some("ht"));
        assert_eq!(code("yue"), Some("yue"));
        assert_eq!(code("klingon"), None);
        assert_eq!(code(""), None);
        assert_eq!(name("nn"), Some("nynorsk"));
        assert_eq!(name("xx"), None);
    }

    #[test]
    fn tags_are_cut_to_what_is_known() {
        for (given, expected) in [
            ("en-US", "en"),
            ("EN_us", "en"),
            ("zh-CN", "zh"),
            ("zh_Hans_CN", "zh"),
            ("cmn-Hant-TW", "zh"),
            ("zh-yue-HK", "yue"),
            ("yue-HK", "yue"),
            ("pt_BR", "pt"),
            ("de_DE.UTF-8", "de"),
            ("ca@valencia", "ca"),
            ("nb-NO", "no"),
            ("nn-NO", "nn"),
            ("haw-US", "haw"),
            ("jv", "jw"),
            ("ger", "de"),
            ("deu-AT", "de"),
            ("JPN", "ja"),
            ("fil-PH", "tl"),
            (" Fr ", "fr"),
        ] {
            assert_eq!(code(given), Some(expected), "{given}");
        }

        for unknown in ["tlh-AQ", "-", "-en", "english us", "x-en", "e", "auto"] {
            assert_eq!(code(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn auto_is_detection() {
        for given in [" AUTO ", "und", "mul"] {
            assert_eq!(LanguageChoice::parse(given), Some(LanguageChoice::Auto), "{given}");
        }
        assert_eq!(LanguageChoice::parse("pt_BR"), Some(LanguageChoice::Code("pt")));
        assert_eq!(LanguageChoice::parse("klingon"), None);
        assert_eq!(LanguageChoice::Auto.into_code(), None);
    }

    #[test]
    fn every_alias_leads_to_a_language() {
        for (alias, target) in ALIASES.into_iter().chain(iso::CODES) {
            assert_eq!(code(alias), Some(target));
        }
    }
}
