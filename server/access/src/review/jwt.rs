//! Reads the claims of a bearer token before it is verified. They only decide that a token is not worth a review: text
//! that is not a JSON Web Token, and a token that was not made for this server, are refused without one.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Limit for audiences; a token names few.
const AUDIENCES_MAX: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token is not a JSON Web Token, as tokens of service accounts are")]
pub(super) struct NotAJwt;

#[derive(Deserialize)]
struct TokenClaims {
    #[serde(default)]
    aud: Audiences,
}

/// RFC 7519, section 4.1.3: one text, or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

/// The audiences that the token claims.
pub(super) fn claimed_audiences(token: &str) -> Result<Vec<String>, NotAJwt> {
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(NotAJwt);
    };

    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| NotAJwt);

    // The text is parsed as an object first, because serde reads a struct from a list, too.
    let object = |part: &str| -> Result<Map<String, Value>, NotAJwt> {
        serde_json::from_slice(&decode(part)?).map_err(|_| NotAJwt)
    };

    let header = object(header)?;
    if !header.get("alg").is_some_and(Value::is_string) || decode(signature)?.is_empty() {
        return Err(NotAJwt);
    }

    let claims = TokenClaims::deserialize(Value::Object(object(claims)?)).map_err(|_| NotAJwt)?;
    Ok(match claims.aud {
        Audiences::One(audience) => vec![audience],
        Audiences::Many(mut audiences) => {
            audiences.truncate(AUDIENCES_MAX);
            audiences
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, claims: &str, signature: &str) -> String {
        [header, claims, signature].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".")
    }

    #[test]
    fn audiences_are_read_from_a_token_and_from_nothing_else() {
        let header = r#"{"alg":"ES256","typ":"JWT"}"#;
        let read = |claims: &str| claimed_audiences(&token(header, claims, "s"));
        assert_eq!(read(r#"{"aud":["a","b"],"sub":"x"}"#).unwrap(), ["a", "b"]);
        assert_eq!(read(r#"{"aud":"a"}"#).unwrap(), ["a"]);
        assert_eq!(read("{}").unwrap(), Vec::<String>::new());

        for claims in ["", "[]", "1", r#"{"aud":7}"#, r#"{"aud":[7]}"#, "{"] {
            assert_eq!(read(claims), Err(NotAJwt), "{claims}");
        }

        let good = r#"{"aud":["a"]}"#;
        for wrong in [
            String::new(),
            "zz17".to_owned(),
            "..".to_owned(),
            "a.b.c".to_owned(),
            token("{}", good, "s"),
            token(header, good, ""),
            format!("{}.x", token(header, good, "s")),
            format!(" {}", token(header, good, "s")),
        ] {
            assert_eq!(claimed_audiences(&wrong), Err(NotAJwt), "{wrong}");
        }
    }
}
