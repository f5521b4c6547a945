//! The command line without a server.

use std::process::{Command, Output};
use std::time::Duration;

use anyhow::Result;
use hush_tests::{fixtures, process};

/// For a command that is to end by itself.
const DEADLINE: Duration = Duration::from_secs(60);

fn hush(args: &[&str]) -> Result<Output> {
    let mut command = Command::new(fixtures::binary()?);
    command.args(args).env("HUSH_ORT_LIB", fixtures::onnxruntime());
    process::output_within(&mut command, DEADLINE)
}

fn path(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

#[test]
fn transcribe_writes_the_five_formats() -> Result<()> {
    let models = path(&fixtures::models_dir("int8")?);
    let file = path(&fixtures::fixture("audio/en-1.wav"));
    for (format, expected) in [
        ("txt", "Clean the light.\n"),
        ("srt", "1\n00:00:00,000 --> 00:00:00,735\nClean the light.\n\n"),
        ("vtt", "WEBVTT\n\n00:00.000 --> 00:00.735\nClean the light.\n\n"),
        ("tsv", "start\tend\ttext\n0\t735\tClean the light.\n"),
    ] {
        let output = hush(&["transcribe", "--models-dir", &models, "--model", "hush-tiny", "--output", format, &file])?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{format}");
    }
    let output = hush(&["transcribe", "--models-dir", &models, "--model", "hush-tiny", "--output", "json", &file])?;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(json["segments"][0]["text"], " Clean the light.");
    Ok(())
}

#[test]
fn a_model_that_knows_only_english_refuses_other_languages() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let checkpoint = folder.path().join("tiny.en");
    std::fs::create_dir(&checkpoint)?;
    for entry in std::fs::read_dir(fixtures::checkpoint())? {
        let entry = entry?;
        std::fs::copy(entry.path(), checkpoint.join(entry.file_name()))?;
    }
    let generation = checkpoint.join("generation_config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&generation)?)?;
    json["is_multilingual"] = false.into();
    std::fs::write(&generation, json.to_string())?;
    let models = path(&folder.path().join("models"));
    let installed =
        hush(&["install", "--name", "tiny.en", "--precision", "fp32", "--models-dir", &models, &path(&checkpoint)])?;
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    let file = path(&fixtures::fixture("audio/es-1.wav"));
    let transcribe = |options: &[&str]| {
        hush(&[&["transcribe", "--models-dir", &models, "--model", "tiny.en"], options, &[&file]].concat())
    };
    for (options, words) in [(&["--language", "es"], "`es` (spanish)"), (&["--task", "translate"], "cannot translate")]
    {
        let output = transcribe(options)?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && output.stdout.is_empty(), "{options:?}");
        assert!(stderr.contains("knows only English") && stderr.contains(words), "{stderr}");
    }
    assert!(transcribe(&["--language", "en"])?.status.success());
    Ok(())
}

#[test]
fn several_files_go_into_a_folder() -> Result<()> {
    let models = path(&fixtures::models_dir("int8")?);
    let out = tempfile::tempdir()?;
    let files = ["fr-1", "es-1"].map(|n| path(&fixtures::fixture(&format!("audio/{n}.wav"))));
    let mut args = vec!["transcribe", "--models-dir", &models, "--model", "hush-tiny", "--output", "srt"];
    let folder = path(out.path());
    args.extend(["--output-dir", &folder, &files[0], &files[1]]);
    let output = hush(&args)?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::read_to_string(out.path().join("fr-1.srt"))?.contains("Nettoie le chat."));
    assert!(out.path().join("es-1.srt").exists());
    Ok(())
}

/// A call of `transcribe` that succeeds; what it writes.
fn transcribed(options: &[&str], audio: &str) -> Result<String> {
    let (models, file) = (path(&fixtures::models_dir("int8")?), path(&fixtures::fixture("audio").join(audio)));
    let args = [&["transcribe", "--models-dir", &models, "--model", "hush-tiny"], options, &[&file]].concat();
    let output = hush(&args)?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn words_make_subtitles() -> Result<()> {
    let json: serde_json::Value =
        serde_json::from_str(&transcribed(&["--word-timestamps", "--output", "json"], "en-1.wav")?)?;
    let words: Vec<_> = json["segments"][0]["words"].as_array().into_iter().flatten().collect();
    assert_eq!(words.iter().filter_map(|word| word["word"].as_str()).collect::<String>(), " Clean the light.");
    let srt = transcribed(&["--word-timestamps", "--max-words-per-line", "1", "--output", "srt"], "en-1.wav")?;
    assert_eq!(srt.matches(" --> ").count(), 3, "{srt}");
    assert!(srt.contains("\nClean\n") && srt.contains("\nlight.\n"), "{srt}");
    let lit = transcribed(&["--word-timestamps", "--highlight-words", "--output", "vtt"], "en-1.wav")?;
    assert!(lit.contains("Clean <u>the</u> light."), "{lit}");
    Ok(())
}

#[test]
fn noise_is_not_listened_to() -> Result<()> {
    assert_eq!(transcribed(&["--vad-filter", "--output", "srt"], "noise.flac")?, "");
    let srt = transcribed(&["--vad-filter", "--language", "es", "--output", "srt"], "pauses-es.flac")?;
    // The last phrase ends 57 s into the file, behind 40 s of pauses.
    assert!(srt.lines().any(|line| line.contains(" --> 00:00:57")), "{srt}");
    Ok(())
}

#[test]
fn a_missing_model_for_voice_activity_is_told_before_anything_else() -> Result<()> {
    let file = path(&fixtures::fixture("audio/en-1.wav"));
    let output = hush(&["transcribe", "--vad-filter", "--vad-model", "/nowhere/vad.onnx", &file])?;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("/nowhere/vad.onnx") && error.contains("silero-vad"), "{error}");
    Ok(())
}

#[test]
fn a_missing_model_names_the_command_that_installs_it() -> Result<()> {
    let empty = tempfile::tempdir()?;
    let file = path(&fixtures::fixture("audio/en-1.wav"));
    let output = hush(&["transcribe", "--models-dir", &path(empty.path()), "--model", "no-such-model", &file])?;
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("no-such-model") && error.contains("hush-server install"), "{error}");
    Ok(())
}

#[test]
fn models_lists_what_is_installed() -> Result<()> {
    let models = path(&fixtures::models_dir("int8")?);
    let output = hush(&["models", "--models-dir", &models])?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("hush-tiny") && text.contains("int8"), "{text}");
    Ok(())
}

#[test]
fn every_option_of_serve_is_explained_and_has_a_variable() -> Result<()> {
    let output = hush(&["serve", "--help"])?;
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    for option in [
        "--model",
        "--models-dir",
        "--listen",
        "--ops-listen",
        "--residency",
        "--idle-timeout",
        "--device",
        "--precision",
        "--ort-lib",
        "--spare-runner",
    ] {
        assert!(help.contains(option), "{option} is not in\n{help}");
        let variable = format!("HUSH_{}", option.trim_start_matches('-').replace('-', "_").to_uppercase());
        assert!(help.contains(&variable), "{variable} is not in\n{help}");
    }
    Ok(())
}

#[test]
fn a_bad_value_names_the_option_and_the_fix() -> Result<()> {
    for (args, named) in [
        (["serve", "--idle-timeout", "soon"], "idle-timeout"),
        (["serve", "--device", "tpu"], "device"),
        (["serve", "--listen", "nowhere"], "listen"),
    ] {
        let output = hush(&args)?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(named), "{error}");
    }
    Ok(())
}

/// Whether a part of a message stands in it twice, as a cause that its error has told already.
fn is_said_twice(message: &str) -> bool {
    // Shorter parts are names and words, which may come again.
    let parts = message.trim().split(": ").filter(|part| part.len() >= 12);
    parts.into_iter().any(|part| message.matches(part).count() > 1)
}

#[test]
fn causes_are_said_once() -> Result<()> {
    assert!(is_said_twice("error: reading it: there is no file: there is no file"));
    assert!(is_said_twice("error: the end of a file; install it again: the end of a file"));
    assert!(!is_said_twice("error: a.wav: reading a.wav failed: there is no file"));
    let models = path(&fixtures::models_dir("int8")?);
    let folder = tempfile::tempdir()?;
    let nothing = path(&folder.path().join("nothing"));
    let (text, audio) = (path(&folder.path().join("text.wav")), path(&fixtures::fixture("audio/en-1.wav")));
    std::fs::write(&text, "no audio")?;
    std::fs::create_dir_all(folder.path().join("broken/int8"))?;
    std::fs::write(folder.path().join("broken/int8/model.json"), "{")?;
    let broken = path(folder.path());
    let tiny = ["--models-dir", models.as_str(), "--model", "hush-tiny"];
    let serve = [&["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"], tiny.as_slice()].concat();
    let transcribe = [&["transcribe"], tiny.as_slice()].concat();
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?.to_string();
    for (command, more) in [
        (&transcribe, vec![nothing.as_str()]),
        (&transcribe, vec!["/"]),
        (&transcribe, vec![text.as_str()]),
        (&transcribe, vec!["--output-dir", "/proc/nothing", audio.as_str()]),
        (&transcribe, vec!["--ort-lib", text.as_str(), audio.as_str()]),
        (&vec!["transcribe", "--models-dir", &broken, "--model", "broken"], vec![audio.as_str()]),
        (&serve, vec!["--listen", taken.as_str()]),
        (&serve, vec!["--config", nothing.as_str()]),
        (&serve, vec!["--api-keys-file", nothing.as_str()]),
        (&serve, vec!["--tls-cert", nothing.as_str(), "--tls-key", nothing.as_str()]),
        (&serve, vec!["--spool-dir", nothing.as_str()]),
        (&vec!["install", "--models-dir", "/proc/nothing"], vec![nothing.as_str()]),
        (&vec!["install", "--models-dir", &broken], vec![broken.as_str()]),
    ] {
        let mut arguments = command.clone();
        // An option that is given twice is refused by itself.
        arguments.retain(|argument| !(more.contains(&"--listen") && ["--listen", "127.0.0.1:0"].contains(argument)));
        if more.contains(&"--listen") {
            arguments.retain(|argument| *argument != "--ops-listen");
            arguments.extend(["--ops-listen", "127.0.0.1:0"]);
        }
        let output = hush(&[arguments, more.clone()].concat())?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !said.is_empty(), "{more:?}: {said}");
        for line in said.lines() {
            assert!(!is_said_twice(line), "{more:?}: {line}");
        }
    }
    Ok(())
}

#[test]
fn standard_input_is_transcribed() -> Result<()> {
    let models = path(&fixtures::models_dir("int8")?);
    let audio = fixtures::fixture("audio/en-1.wav");
    let arguments = ["transcribe", "--models-dir", &models, "--model", "hush-tiny"];
    let run = |more: &[&str], input: std::process::Stdio| -> Result<Output> {
        let mut command = Command::new(fixtures::binary()?);
        command.args(arguments).args(more).env("HUSH_ORT_LIB", fixtures::onnxruntime()).stdin(input);
        Ok(command.output()?)
    };
    // A file, and a pipe, in which nothing can go back.
    let output = run(&["-"], std::fs::File::open(&audio)?.into())?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Clean the light.\n");
    let mut cat = Command::new("cat").arg(&audio).stdout(std::process::Stdio::piped()).spawn()?;
    let folder = tempfile::tempdir()?;
    let pipe = cat.stdout.take().map(Into::into).unwrap_or_else(std::process::Stdio::null);
    let output = run(&["--output", "srt", "--output-dir", &path(folder.path()), "-"], pipe)?;
    cat.wait()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::read_to_string(folder.path().join("standard-input.srt"))?.contains("Clean the light."));

    let output = run(&["-", "-"], std::process::Stdio::null())?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("only once"), "{said}");
    let output = run(&["-"], std::process::Stdio::null())?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("standard input: "), "{said}");
    Ok(())
}

#[test]
fn languages_are_taken_in_every_spelling() -> Result<()> {
    for language in ["auto", "", "en-US", "EN_gb", "English"] {
        assert_eq!(transcribed(&["--language", language], "en-1.wav")?, "Clean the light.\n", "{language}");
    }
    let models = path(&fixtures::models_dir("int8")?);
    let file = path(&fixtures::fixture("audio/en-1.wav"));
    let output =
        hush(&["transcribe", "--models-dir", &models, "--model", "hush-tiny", "--language", "klingon", &file])?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("--language") && said.contains("english"), "{said}");
    Ok(())
}

/// A cache as huggingface_hub writes it, with one repository.
fn hub_cache(home: &std::path::Path, repository: &str) -> Result<std::path::PathBuf> {
    let folder = home.join(".cache/huggingface/hub").join(repository);
    let snapshot = folder.join("snapshots/0123abcd");
    std::fs::create_dir_all(&snapshot)?;
    std::fs::create_dir_all(folder.join("refs"))?;
    std::fs::write(folder.join("refs/main"), "0123abcd")?;
    for entry in std::fs::read_dir(fixtures::checkpoint())? {
        let entry = entry?;
        std::os::unix::fs::symlink(entry.path(), snapshot.join(entry.file_name()))?;
    }
    Ok(snapshot)
}

#[test]
fn a_name_is_found_in_the_caches_of_other_programs_without_a_network() -> Result<()> {
    let home = tempfile::tempdir()?;
    let snapshot = hub_cache(home.path(), "models--openai--whisper-tiny")?;
    let run = |args: &[&str]| {
        let mut command = Command::new(fixtures::binary()?);
        command.env("HOME", home.path()).env("HF_HUB_OFFLINE", "1").env_remove("XDG_CACHE_HOME");
        command.env_remove("HF_HOME").env_remove("HF_HUB_CACHE").env("HUSH_ORT_LIB", fixtures::onnxruntime());
        process::output_within(command.args(args), DEADLINE)
    };
    let models = path(&home.path().join("models"));
    let file = path(&fixtures::fixture("audio/en-1.wav"));

    let said = run(&["transcribe", "--models-dir", &models, "--model", "tiny", "--precision", "int8", &file])?;
    let stderr = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success(), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "Clean the light.\n");
    assert!(stderr.contains("nothing is downloaded") && stderr.contains("0123abcd"), "{stderr}");
    let listed = run(&["models", "--json", "--models-dir", &models])?;
    let rows: serde_json::Value = serde_json::from_slice(&listed.stdout)?;
    assert_eq!((&rows[0]["name"], &rows[0]["source"]), (&"tiny".into(), &path(&snapshot).into()));

    // A copy that is damaged is named, and the hub is asked.
    std::fs::remove_file(snapshot.join("model.safetensors"))?;
    let said = run(&["install", "--models-dir", &models, "--force", "--precision", "int8", "tiny"])?;
    let stderr = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.status.success() && stderr.contains("a copy of the model cannot be used"), "{stderr}");
    assert!(stderr.contains("model.safetensors"), "{stderr}");
    Ok(())
}

#[test]
fn a_checkpoint_is_taken_by_its_path() -> Result<()> {
    let home = tempfile::tempdir()?;
    let models = path(&home.path().join("models"));
    let checkpoint = home.path().join("mine");
    std::os::unix::fs::symlink(fixtures::checkpoint(), &checkpoint)?;
    let file = path(&fixtures::fixture("audio/en-1.wav"));
    let run =
        |model: &str| hush(&["transcribe", "--models-dir", &models, "--precision", "int8", "--model", model, &file]);
    for _ in 0..2 {
        let said = run(&path(&checkpoint))?;
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        assert_eq!(String::from_utf8_lossy(&said.stdout), "Clean the light.\n");
    }
    let name = std::fs::canonicalize(&checkpoint)?;
    let name = name.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    assert!(std::path::Path::new(&models).join(&name).join("int8/model.json").is_file());

    // Another checkpoint of the same name does not take the place of the first.
    let other = home.path().join("other").join(&name);
    std::fs::create_dir_all(&other)?;
    for entry in std::fs::read_dir(fixtures::checkpoint())? {
        let entry = entry?;
        std::fs::copy(entry.path(), other.join(entry.file_name()))?;
    }
    let said = run(&path(&other))?;
    let stderr = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.status.success() && stderr.contains("--name NAME"), "{stderr}");

    let said = run("./no-such-file.pt")?;
    assert!(String::from_utf8_lossy(&said.stderr).contains("there is no folder or file"));
    Ok(())
}
