//! What CUDA lacks is said before a model is loaded, and decides what `--device auto` is.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use hush_nvml::{Script, ScriptedDevice};
use hush_tests::cuda_double::CudaDouble;
use hush_tests::gpus::{GIB, SOON, UUID};
use hush_tests::wait::wait_for;
use hush_tests::{Server, ServerOptions, fixtures, http};

/// Variables of the double, without the one that says where its libraries are.
fn variables(cuda: &CudaDouble) -> Vec<(String, String)> {
    cuda.env().into_iter().filter(|(name, _)| name != "LD_LIBRARY_PATH").collect()
}

fn hush(cuda: &CudaDouble, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(fixtures::binary()?);
    for variable in ["LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HUSH_DEVICE", "HUSH_PRECISION"] {
        command.env_remove(variable);
    }
    Ok(command.args(args).envs(variables(cuda)).output()?)
}

/// What `serve` asks before it decides.
fn probe(cuda: &CudaDouble, library: &Path) -> Result<String> {
    let library = library.to_string_lossy();
    let output = hush(cuda, &["runner", "probe-cuda", &library, "0"])?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn refused(cuda: &CudaDouble, parts: &[&str]) -> Result<()> {
    let answer = probe(cuda, &cuda.onnxruntime())?;
    ensure!(answer != "works" && parts.iter().all(|part| answer.contains(part)), "{parts:?}: {answer}");
    Ok(())
}

fn works(cuda: &CudaDouble) -> Result<()> {
    let answer = probe(cuda, &cuda.onnxruntime())?;
    ensure!(answer == "works", "{answer}");
    Ok(())
}

/// Standard output of `transcribe`, and its log.
fn said(cuda: &CudaDouble, args: &[&str]) -> Result<(String, String)> {
    let (models, library) = (fixtures::models_dir("fp16")?, cuda.onnxruntime());
    let audio = fixtures::fixture("audio/en-1.wav");
    let paths = [&models, &library, &audio].map(|path| path.to_string_lossy().into_owned());
    let fixed = ["transcribe", "--model", fixtures::MODEL, "--models-dir", &paths[0], "--ort-lib", &paths[1]];
    let output = hush(cuda, &[&fixed[..], args, &[paths[2].as_str()]].concat())?;
    Ok((String::from_utf8(output.stdout)?.trim().to_owned(), String::from_utf8(output.stderr)?))
}

#[test]
fn libraries_beside_the_provider_are_found_without_ld_library_path() -> Result<()> {
    let Some(cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    works(&cuda)?;
    let (text, log) = said(&cuda, &["--device", "cuda", "--precision", "fp16"])?;
    assert_eq!(text, "Clean the light.", "{log}");
    Ok(())
}

#[test]
fn gpus_that_the_provider_holds_no_code_for_are_refused_by_name() -> Result<()> {
    let Some(mut cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    for capability in [[6, 1], [7, 0], [10, 0], [10, 3], [11, 0], [12, 1]] {
        cuda.change_gpu(|gpu| gpu.compute_capability = capability)?;
        let has = format!("compute capability {}.{}", capability[0], capability[1]);
        refused(&cuda, &[&has, "7.5, 8.0, 8.6, 8.9, 9.0a, 12.0a"])?;
    }
    for capability in [[7, 5], [8, 0], [8, 6], [8, 7], [8, 9], [9, 0], [12, 0]] {
        cuda.change_gpu(|gpu| gpu.compute_capability = capability)?;
        works(&cuda)?;
    }
    Ok(())
}

#[test]
fn a_driver_that_is_too_old_or_refuses_says_so() -> Result<()> {
    let Some(mut cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    cuda.gpus.cuda_version = 12040;
    cuda.write()?;
    refused(&cuda, &["CUDA 12.4", "CUDA 13", "newer driver"])?;
    cuda.gpus.cuda_version = 13000;
    cuda.change(|script| script.init_error = 803)?;
    refused(&cuda, &["error 803", "load the driver anew"])?;
    cuda.change(|script| script.init_error = 100)?;
    refused(&cuda, &["error 100", "CUDA sees no GPU"])
}

#[test]
fn a_missing_driver_and_missing_libraries_have_their_own_advice() -> Result<()> {
    let Some(cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    if Path::new("/dev/nvidiactl").exists() {
        eprintln!("skipped: this machine has a driver of its own");
        return Ok(());
    }
    let real = cuda.onnxruntime().parent().context("no folder")?.to_owned();
    let without = |name: &str, left_out: &[&str]| -> Result<String> {
        let folder = cuda.folder().join(name);
        fs::create_dir(&folder)?;
        for entry in fs::read_dir(&real)?.flatten() {
            let file = entry.file_name();
            if entry.path().is_file() && !left_out.iter().any(|left_out| *left_out == file) {
                symlink(entry.path(), folder.join(file))?;
            }
        }
        probe(&cuda, &folder.join("libonnxruntime.so"))
    };
    let no_driver = without("no-driver", &["libcuda.so.1"])?;
    ensure!(no_driver.starts_with("no NVIDIA driver"), "{no_driver}");
    ensure!(!no_driver.contains("missing") && !no_driver.contains("LD_LIBRARY_PATH"), "{no_driver}");

    let no_cublas = without("no-cublas", &["libcublas.so.13"])?;
    let named = ["libcublas.so.13 (package nvidia-cublas on PyPI", "libcublas-13-*", "LD_LIBRARY_PATH"];
    ensure!(named.iter().all(|part| no_cublas.contains(part)), "{no_cublas}");
    ensure!(!no_cublas.contains("libcudart") && !no_cublas.contains("driver"), "{no_cublas}");

    let neither = without("neither", &["libcuda.so.1", "libcurand.so.10"])?;
    ensure!(neither.contains("package nvidia-curand") && neither.contains("driver is missing too"), "{neither}");
    let for_cpus = without("for-cpus", &["libonnxruntime_providers_cuda.so"])?;
    ensure!(for_cpus.contains("GPU build of ONNX Runtime"), "{for_cpus}");
    Ok(())
}

/// What is there may look right and yet not work: only kernels that ran prove it.
#[test]
fn a_graph_has_to_run_and_to_give_the_cpus_numbers() -> Result<()> {
    let Some(mut cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    cuda.change(|script| script.compute = false)?;
    refused(&cuda, &["gives wrong numbers on GPU 0"])?;
    cuda.change(|script| {
        script.compute = true;
        script.launches_before_failure = Some(0);
    })?;
    refused(&cuda, &["does not run on GPU 0"])
}

#[test]
fn a_gpu_that_is_full_is_no_reason_to_do_without_it() -> Result<()> {
    let Some(mut cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    cuda.change(|script| script.allocation_limit_bytes = Some(4096))?;
    works(&cuda)
}

#[test]
fn auto_is_the_gpu_where_it_works_and_says_why_where_not() -> Result<()> {
    let Some(mut cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    let kernels = |cuda: &CudaDouble| -> Result<u64> {
        Ok(cuda.logs()?.iter().map(|log| log.counters().kernels.total().count).sum())
    };
    let (text, log) = said(&cuda, &["--device", "auto"])?;
    ensure!(text == "Clean the light." && !log.contains("is the CPU here"), "{log}");
    let with_gpu = kernels(&cuda)?;
    ensure!(with_gpu > 100, "{with_gpu} kernels");

    let (text, log) = said(&cuda, &["--device", "cuda", "--precision", "int8"])?;
    ensure!(text.is_empty() && log.contains("fp16 only"), "{log}");
    cuda.change(|script| script.compute = false)?;
    let (text, log) = said(&cuda, &["--device", "auto"])?;
    ensure!(text == "Clean the light." && log.contains("is the CPU here: a small attention graph"), "{log}");
    Ok(())
}

/// NVML counts by bus, CUDA by speed unless it is told: the first on the bus is the slower, which is too old.
#[test]
fn transcribe_counts_gpus_as_nvidia_smi_does() -> Result<()> {
    let old = ScriptedDevice { compute_capability: [6, 1], ..ScriptedDevice::new(UUID, 8 * GIB) };
    let new = ScriptedDevice {
        compute_capability: [9, 0],
        ..ScriptedDevice::new("GPU-22222222-2222-3333-4444-555555555555", 16 * GIB)
    };
    let Some(cuda) = CudaDouble::with(Script::of([old, new]))? else { return Ok(()) };
    for device in ["cuda:1", "cuda:GPU-22222222-2222-3333-4444-555555555555", "cuda:GPU-2222"] {
        let (text, log) = said(&cuda, &["--device", device])?;
        assert_eq!(text, "Clean the light.", "{device}: {log}");
    }
    for device in ["cuda:0", "cuda:GPU-1111"] {
        let (text, log) = said(&cuda, &["--device", device])?;
        assert!(text.is_empty() && log.contains("compute capability 6.1"), "{device}: {log}");
    }
    // The first on the bus decides here too.
    let (_, log) = said(&cuda, &["--device", "auto"])?;
    assert!(log.contains("is the CPU here: GPU 0 has compute capability 6.1"), "{log}");
    Ok(())
}

/// A models folder that holds the bundled model in 8 bits alone, installed from a checkpoint that is gone.
fn int8_only(folder: &Path) -> Result<()> {
    let (from, into) = (fixtures::models_dir("int8")?.join(fixtures::MODEL).join("int8"), folder.join("mine/int8"));
    fs::create_dir_all(&into)?;
    for entry in fs::read_dir(from)?.flatten() {
        fs::copy(entry.path(), into.join(entry.file_name()))?;
    }
    let manifest = into.join("model.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&manifest)?)?;
    json["source"] = "/nonexistent/checkpoint".into();
    Ok(fs::write(manifest, serde_json::to_vec(&json)?)?)
}

#[test]
fn a_model_in_8_bits_runs_on_the_cpu_of_a_machine_with_a_gpu() -> Result<()> {
    let Some(cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    let models = cuda.folder().join("int8-only");
    int8_only(&models)?;
    let server = Server::start_with(ServerOptions {
        args: ["--model", "mine", "--device", "auto"].map(str::to_owned).to_vec(),
        env: variables(&cuda),
        models_dir: Some(models.clone()),
        ort_lib: Some(cuda.onnxruntime()),
        ..ServerOptions::default()
    })?;
    assert!(server.asr("?language=en&output=txt", "en-1.wav")?.text().contains("Clean the light."));
    let infos = http::get(server.ops, "/metrics")?.text();
    let info = infos.lines().find(|line| line.starts_with("hush_device_info{")).unwrap_or_default();
    let parts = ["asked=\"auto\"", "device=\"cpu\"", "`mine` is not installed as fp16", "it is there as int8"];
    assert!(parts.iter().all(|part| info.contains(part)), "{info}");
    drop(server);

    let (models, library) = (models.to_string_lossy(), cuda.onnxruntime());
    let fixed = ["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--models-dir", &models];
    let rest = ["--model", "mine", "--device", "cuda", "--ort-lib", &library.to_string_lossy()];
    let output = hush(&cuda, &[&fixed[..], &rest].concat())?;
    let error = String::from_utf8(output.stderr)?;
    let parts = ["`mine` is not installed as fp16", "fp16 only", "--precision fp16"];
    assert!(!output.status.success() && parts.iter().all(|part| error.contains(part)), "{error}");
    Ok(())
}

#[test]
fn install_builds_for_the_device_that_serve_would_take() -> Result<()> {
    let Some(mut cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    let checkpoint = fixtures::checkpoint();
    let installed = |cuda: &CudaDouble, folder: &str| -> Result<String> {
        let (models, library) = (cuda.folder().join(folder), cuda.onnxruntime());
        let mut command = Command::new(fixtures::binary()?);
        command.arg("install").arg(&checkpoint).args(["--name", "mine", "--models-dir"]).arg(models);
        command.env("HUSH_ORT_LIB", library).envs(variables(cuda));
        Ok(String::from_utf8(command.output()?.stdout)?.trim().to_owned())
    };
    let for_gpu = installed(&cuda, "for-gpu")?;
    assert!(for_gpu.ends_with("mine/fp16"), "{for_gpu}");
    cuda.change(|script| script.init_error = 100)?;
    let for_cpu = installed(&cuda, "for-cpu")?;
    assert!(for_cpu.ends_with("mine/int8"), "{for_cpu}");
    Ok(())
}

/// The checkpoint is known: fp16 is installed beside what is there.
#[test]
fn fp16_is_installed_for_a_gpu_where_the_checkpoint_is_known() -> Result<()> {
    let Some(cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    let models = cuda.folder().join("known");
    int8_only(&models)?;
    let manifest = models.join("mine/int8/model.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&manifest)?)?;
    json["source"] = fixtures::checkpoint().canonicalize()?.to_string_lossy().into_owned().into();
    fs::write(&manifest, serde_json::to_vec(&json)?)?;
    let server = Server::start_with(ServerOptions {
        args: ["--model", "mine", "--device", "auto"].map(str::to_owned).to_vec(),
        env: variables(&cuda),
        models_dir: Some(models.clone()),
        ort_lib: Some(cuda.onnxruntime()),
        ..ServerOptions::default()
    })?;
    wait_for("fp16 is installed", SOON, || Ok(models.join("mine/fp16/model.json").is_file().then_some(())))?;
    assert!(server.asr("?language=en&output=txt", "en-1.wav")?.text().contains("Clean the light."));
    let infos = http::get(server.ops, "/metrics")?.text();
    let info = infos.lines().find(|line| line.starts_with("hush_device_info{")).unwrap_or_default();
    assert!(info.contains("device=\"cuda:0\"") && info.contains("reason=\"\""), "{info}");
    Ok(())
}

/// Whatever a manifest says: graphs that CUDA cannot compute are an error, and never another text.
#[test]
fn a_model_that_lies_about_its_precision_does_not_load_on_cuda() -> Result<()> {
    let Some(cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    for precision in ["int8", "fp32"] {
        let from = fixtures::models_dir(precision)?.join(fixtures::MODEL).join(precision);
        let into = cuda.folder().join(precision).join("fp16");
        fs::create_dir_all(&into)?;
        for entry in fs::read_dir(from)?.flatten() {
            fs::copy(entry.path(), into.join(entry.file_name()))?;
        }
        let manifest = into.join("model.json");
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&manifest)?)?;
        json["precision"] = "fp16".into();
        fs::write(&manifest, serde_json::to_vec(&json)?)?;

        let (model, library) = (into.to_string_lossy(), cuda.onnxruntime());
        let audio = fixtures::fixture("audio/en-1.wav");
        let (library, audio) = (library.to_string_lossy(), audio.to_string_lossy());
        let args = ["transcribe", "--model", &model, "--device", "cuda", "--ort-lib", &library, &audio];
        let output = hush(&cuda, &args)?;
        let error = String::from_utf8(output.stderr)?;
        assert!(!output.status.success() && output.stdout.is_empty(), "{precision}: {error}");
        println!("{precision}: {}", error.lines().last().unwrap_or_default());
    }
    Ok(())
}
