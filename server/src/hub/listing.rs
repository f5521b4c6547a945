//! The files of a repository, and those that a checkpoint needs.

use serde::Deserialize;

use super::digest::ContentDigest;
use super::{HubError, Repo};

/// The hub's answer to `/api/models/{repo}/revision/{revision}?blobs=true`.
#[derive(Debug, Deserialize)]
pub struct RepositoryListing {
    /// The commit of the revision.
    pub sha: String,
    #[serde(default)]
    siblings: Vec<ListedFile>,
}

#[derive(Debug, Deserialize)]
struct ListedFile {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<LfsMetadata>,
}

#[derive(Debug, Deserialize)]
struct LfsMetadata {
    sha256: Option<String>,
    size: Option<u64>,
}

/// A file of the repository, with the length and the digest of the listing (a mirror may state neither).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    pub name: String,
    pub size: Option<u64>,
    pub digest: Option<ContentDigest>,
}

pub const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";
const OPTIONAL: &[&str] = &["generation_config.json", "preprocessor_config.json"];
/// The weights of a conversion for CTranslate2.
pub const CTRANSLATE2_WEIGHTS: &str = "model.bin";
/// What lies beside them. `vocabulary.json` or `vocabulary.txt` is not read: a model without a tokenizer has the vocabulary
/// of its family.
const CTRANSLATE2_OPTIONAL: &[&str] = &["config.json", "tokenizer.json", "preprocessor_config.json"];

impl RepositoryListing {
    pub fn parse(repo: &Repo, json: &[u8]) -> Result<Self, HubError> {
        let invalid = |problem: String| HubError::InvalidAnswer { what: format!("`{repo}`"), problem };
        let listing: Self = serde_json::from_slice(json).map_err(|error| invalid(error.to_string()))?;
        // The commit becomes a part of paths and URLs.
        if listing.sha.is_empty() || !listing.sha.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(invalid(format!("{:?} is not a commit", listing.sha)));
        }
        Ok(listing)
    }

    /// The files of a checkpoint without the shards, which only the index names. A repository with both safetensors and a
    /// conversion for CTranslate2 is taken for the former.
    pub fn checkpoint_files(&self, repo: &Repo) -> Result<Vec<RemoteFile>, HubError> {
        let safetensors = self.find(WEIGHTS).or_else(|| self.find(INDEX));
        if safetensors.is_none()
            && let Some(converted) = self.find(CTRANSLATE2_WEIGHTS)
        {
            let beside = CTRANSLATE2_OPTIONAL.iter().filter_map(|name| self.find(name));
            return Ok(beside.chain([converted]).collect());
        }

        let config = self.find("config.json");
        let config =
            config.ok_or_else(|| HubError::NoFile { repo: repo.to_string(), file: "config.json".to_owned() })?;
        let weights = safetensors.ok_or_else(|| HubError::NoWeights { repo: repo.to_string() })?;

        let mut files = vec![config];
        files.extend(OPTIONAL.iter().filter_map(|name| self.find(name)));

        match (self.find("tokenizer.json"), self.find("vocab.json"), self.find("merges.txt")) {
            (Some(tokenizer), ..) => files.push(tokenizer),
            (None, Some(vocabulary), Some(merges)) => {
                files.extend([vocabulary, merges]);
                files.extend(self.find("added_tokens.json"));
            }
            _ => return Err(HubError::NoTokenizer { repo: repo.to_string() }),
        }

        files.push(weights);
        Ok(files)
    }

    /// The shards that an index names.
    pub fn shards(&self, repo: &Repo, index: &[u8]) -> Result<Vec<RemoteFile>, HubError> {
        #[derive(Deserialize)]
        struct WeightIndex {
            weight_map: std::collections::BTreeMap<String, String>,
        }

        let invalid = |problem: String| HubError::InvalidAnswer { what: format!("{INDEX} of `{repo}`"), problem };
        let index: WeightIndex = serde_json::from_slice(index).map_err(|error| invalid(error.to_string()))?;
        let mut names: Vec<String> = index.weight_map.into_values().collect();
        names.sort_unstable();
        names.dedup();

        let shards = names.into_iter().map(|name| {
            // The name must be that of a file beside the index.
            if !name.ends_with(".safetensors") || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
                return Err(invalid(format!("{name:?} is not the name of a shard")));
            }

            self.find(&name).ok_or(HubError::NoFile { repo: repo.to_string(), file: name })
        });
        shards.collect()
    }

    fn find(&self, name: &str) -> Option<RemoteFile> {
        let sibling = self.siblings.iter().find(|sibling| sibling.rfilename == name)?;
        let sha256 = sibling.lfs.as_ref().and_then(|lfs| lfs.sha256.as_deref());
        // The blob id of an LFS file identifies its pointer, not its content.
        let blob = sibling.lfs.is_none().then_some(sibling.blob_id.as_deref()).flatten();
        Some(RemoteFile {
            name: name.to_owned(),
            size: sibling.lfs.as_ref().and_then(|lfs| lfs.size).or(sibling.size),
            digest: sha256.or(blob).and_then(ContentDigest::from_etag),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(files: &[&str]) -> RepositoryListing {
        let siblings: Vec<_> = files.iter().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let json = serde_json::json!({ "sha": "abc123", "siblings": siblings }).to_string();
        RepositoryListing::parse(&repo(), json.as_bytes()).unwrap()
    }

    fn repo() -> Repo {
        "a/b".parse().unwrap()
    }

    fn names(files: &[&str]) -> Result<Vec<String>, HubError> {
        Ok(listing(files).checkpoint_files(&repo())?.into_iter().map(|file| file.name).collect())
    }

    #[test]
    fn only_the_files_of_a_checkpoint_are_listed() {
        let files = [
            "README.md",
            "config.json",
            "generation_config.json",
            "preprocessor_config.json",
            "tokenizer.json",
            "vocab.json",
            "merges.txt",
            "added_tokens.json",
            "model.safetensors",
            "pytorch_model.bin",
            "tf_model.h5",
            "flax_model.msgpack",
            "model.safetensors.index.fp32.json",
            "onnx/model.onnx",
        ];
        let expected = [
            "config.json",
            "generation_config.json",
            "preprocessor_config.json",
            "tokenizer.json",
            "model.safetensors",
        ];

        assert_eq!(names(&files).unwrap(), expected);
        let old = ["config.json", "vocab.json", "merges.txt", "added_tokens.json", "model.safetensors.index.json"];
        assert_eq!(names(&old).unwrap(), old);
    }

    #[test]
    fn a_missing_file_is_named() {
        assert!(matches!(names(&["model.safetensors"]), Err(HubError::NoFile { .. })));
        let pytorch = names(&["config.json", "tokenizer.json", "pytorch_model.bin"]);
        assert!(matches!(pytorch, Err(HubError::NoWeights { .. })));
        assert!(matches!(names(&["config.json", "model.safetensors"]), Err(HubError::NoTokenizer { .. })));
    }

    #[test]
    fn a_conversion_for_ctranslate2_needs_its_weights_alone() {
        let published = ["README.md", "config.json", "model.bin", "tokenizer.json", "vocabulary.txt"];
        assert_eq!(names(&published).unwrap(), ["config.json", "tokenizer.json", "model.bin"]);
        let large = ["config.json", "model.bin", "preprocessor_config.json", "tokenizer.json", "vocabulary.json"];
        assert_eq!(names(&large).unwrap(), ["config.json", "tokenizer.json", "preprocessor_config.json", "model.bin"]);
        assert_eq!(names(&["model.bin", "vocabulary.txt"]).unwrap(), ["model.bin"]);

        let both = ["config.json", "tokenizer.json", "model.bin", "model.safetensors"];
        assert_eq!(names(&both).unwrap(), ["config.json", "tokenizer.json", "model.safetensors"]);
    }

    #[test]
    fn shards_stay_in_their_folder() {
        let listing = listing(&["model-1.safetensors", "model-2.safetensors"]);
        let shards = |map: &str| listing.shards(&repo(), format!("{{\"weight_map\":{map}}}").as_bytes());
        let good =
            shards(r#"{"a":"model-2.safetensors","b":"model-1.safetensors","c":"model-2.safetensors"}"#).unwrap();
        assert_eq!(good.len(), 2);

        assert!(shards(r#"{"a":"../model-1.safetensors"}"#).is_err());
        assert!(shards(r#"{"a":"/etc/passwd"}"#).is_err());
        assert!(matches!(shards(r#"{"a":"model-3.safetensors"}"#), Err(HubError::NoFile { .. })));
        assert!(listing.shards(&repo(), b"[]").is_err());
    }

    #[test]
    fn the_digest_of_a_pointer_is_not_used() {
        let json = format!(
            r#"{{"sha":"abc","siblings":[{{"rfilename":"w","size":130,"blobId":"{}","lfs":{{"sha256":"{}","size":9}}}}]}}"#,
            "1".repeat(40),
            "2".repeat(64)
        );

        let file = RepositoryListing::parse(&repo(), json.as_bytes()).unwrap().find("w").unwrap();
        assert_eq!(file.digest, Some(ContentDigest::Sha256("2".repeat(64))));
        assert_eq!(file.size, Some(9));
        assert!(RepositoryListing::parse(&repo(), br#"{"sha":"../x"}"#).is_err());
    }
}
