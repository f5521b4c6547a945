//! Decodes with `ffmpeg`, where it is installed, what the built-in decoders cannot read. ffmpeg is a child process that
//! gets the upload as a seekable file descriptor and writes samples with their times to a pipe. Its further rights are
//! in `sandbox`.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::pcm::{Pcm, PcmWriter};
use super::sandbox::{self, Sandbox};
use super::{AudioError, DecodeOptions, KeepGoing, container};
use hush_listener::spool::Spooled;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ffmpeg {
    /// `ffmpeg` from `PATH`. Without one, the result of the built-in decoders counts.
    #[default]
    OnPath,
    /// This program, which must exist.
    At(PathBuf),
    Off,
}

/// The demuxers of files with sound, by their names in ffmpeg 4 to 8; ffmpeg ignores names that it does not know.
/// Playlists, scripts and manifests (hls, concat, dash, imf, sdp, ...) are left out because they name other files or
/// hosts, which an upload must not do; devices and network protocols because they are not files; images, subtitles and
/// raw samples because they have no sound that can be recognised.
const DEMUXERS: &str = "3dostr,4xm,aa,aac,aax,ac3,ac4,ace,acm,act,adf,adp,ads,adx,aea,afc,aiff,aix,alp,amr,amrnb,amrwb,apac,apc,\
ape,apm,aptx,aptx_hd,argo_asf,argo_brp,argo_cvg,asf,asf_o,ast,au,avi,avr,avs,bethsoftvid,bfi,bfstm,bink,binka,bit,bmv,boa,\
bonk,brstm,c93,caf,cine,codec2,daud,dcstr,derf,dfa,dfpwm,dhav,dsf,dsicin,dss,dts,dtshd,dv,dxa,ea,ea_cdata,eac3,epaf,evc,\
film_cpk,flac,flv,fsb,fwse,g722,g723_1,g726,g726le,g729,gdv,genh,gsm,gxf,hca,hcom,hnm,iamf,idcin,iff,ifv,ilbc,ipmovie,ircam,\
iss,ivr,jv,kux,kvag,laf,lc3,live_flv,lmlm4,loas,luodat,lvf,lxf,m4v,matroska,mca,mgsts,mlp,mlv,mm,mmf,mods,moflex,mov,mp3,mp4,\
mpc,mpc8,mpeg,mpegts,msf,msnwctcp,msp,mtaf,mtv,musx,mv,mvi,mxf,mxg,nc,nistsphere,nsp,nsv,nut,nuv,ogg,oma,osq,paf,pmp,\
pp_bnk,psxstr,pva,pvf,qcp,qoa,r3d,redspark,rka,rl2,rm,roq,rpl,rsd,rso,s337m,sbc,scd,sdns,sdr2,sds,sdx,sga,shn,siff,\
simbiosis_imx,sln,smjpeg,smk,smush,sol,sox,spdif,svag,svs,swf,tak,thp,tiertexseq,tmv,truehd,tta,txd,ty,usm,vag,vividas,\
vivo,vmd,voc,vpk,vqf,w64,wady,wav,wavarc,wc3movie,webm,wsaud,wsd,wsvqa,wtv,wv,wve,xa,xmd,xmv,xvag,xwma,yop";
/// The spool as `ffmpeg` opens it: a path, so that ffmpeg can seek (an MP4 may have its index at the end).
const INPUT: &str = "file:/proc/self/fd/0";
const POLL_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// A clock that jumps ahead by less than this has a gap there, as in the built-in decoders. ffmpeg's default is 10 s.
const LONGEST_GAP_SECONDS: &str = "3600";
/// How far ffmpeg searches for the tracks of a file: audio may begin minutes after the video.
const PROBE_MICROSECONDS: &str = "300000000";
const PROBE_BYTES: &str = "100000000";
const STDERR_BYTES: usize = 2 << 10;
/// How long the ends of the pipes are awaited after ffmpeg has exited: a process that it started may hold them open.
const PIPE_TIMEOUT: Duration = Duration::from_secs(1);
/// Limit for the output of a second of audio: two channels of 16 bits at 16 kHz, and as much again for the overhead of
/// Matroska with packets of a few milliseconds.
const OUTPUT_BYTES_PER_SECOND: u64 = 2 * 2 * 2 * 16_000;
/// Output that any file may have besides, such as for its header.
const OUTPUT_BYTES_AT_LEAST: u64 = 1 << 20;
/// The message for a format that ffmpeg knows and may not read.
const NOT_WHITELISTED: &str = "not on whitelist";
const STDERR_LINES: usize = 3;

/// Decodes with ffmpeg; `Ok(None)` where there is no ffmpeg.
pub(super) fn decode(
    input: &Spooled,
    writer: PcmWriter,
    options: &DecodeOptions,
    timeout: Duration,
    keep_going: &KeepGoing<'_>,
) -> Result<Option<Pcm>, AudioError> {
    let Some(mut child) = start_if_installed(input, options)? else { return Ok(None) };
    let (Some(stdout), Some(stderr)) = (child.process.stdout.take(), child.process.stderr.take()) else {
        return Err(AudioError::FfmpegSpawn(io::ErrorKind::BrokenPipe.into()));
    };

    let stderr = last_bytes(stderr);
    let deadline = FfmpegDeadline { ends_at: Instant::now() + timeout, timeout, keep_going };
    let stopped = Mutex::new(None);
    let limit_bytes =
        OUTPUT_BYTES_AT_LEAST.saturating_add(options.limit_seconds.saturating_mul(OUTPUT_BYTES_PER_SECOND));

    let process = child.pid().map_err(AudioError::FfmpegSpawn)?;
    let output = FfmpegOutput {
        stdout,
        process,
        exited: None,
        deadline: &deadline,
        stopped: &stopped,
        limit_bytes,
        read_bytes: 0,
    };

    let decoded = container::decode_stream(output, writer, keep_going);
    if let Some(error) = stopped.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }

    let decoded = match decoded {
        // ffmpeg may report the reason when it exits.
        Err(error) if error.is_worth_ffmpeg() => Err(error),
        Err(error) => return Err(error),
        // The writer is full; the rest of the output is not needed.
        Ok((pcm, true)) => return Ok(Some(pcm)),
        Ok((pcm, false)) => Ok(pcm),
    };

    let status = wait_for_exit(&mut child, &deadline)?;
    if !status.success() {
        return Err(exit_error(status, &stderr, options));
    }

    // ffmpeg found nothing to decode where its output has no samples.
    decoded.map(Some).map_err(|_| AudioError::NoSamples)
}

/// Starts ffmpeg; `Ok(None)` where it is switched off or not installed.
fn start_if_installed(input: &Spooled, options: &DecodeOptions) -> Result<Option<FfmpegProcess>, AudioError> {
    let (named, is_optional) = match &options.ffmpeg {
        Ffmpeg::Off => return Ok(None),
        Ffmpeg::OnPath => (Path::new("ffmpeg"), true),
        Ffmpeg::At(program) => (program.as_path(), false),
    };

    match start(named, input, options) {
        Ok(child) => Ok(Some(child)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_optional => Ok(None),
        Err(error) => Err(AudioError::FfmpegSpawn(error)),
    }
}

fn wait_for_exit(child: &mut FfmpegProcess, deadline: &FfmpegDeadline<'_>) -> Result<ExitStatus, AudioError> {
    loop {
        if let Some(status) = child.exit_status().map_err(AudioError::FfmpegSpawn)? {
            return Ok(status);
        }

        deadline.check()?;
        thread::sleep(Duration::from_millis(5));
    }
}

/// Why ffmpeg exited with a failure.
fn exit_error(status: ExitStatus, stderr: &Receiver<Vec<u8>>, options: &DecodeOptions) -> AudioError {
    if status.signal() == Some(libc::SIGXCPU) {
        let seconds = options.ffmpeg_limits.processor_time.as_secs();
        return AudioError::FfmpegLimit { limit: format!("{seconds} s of processor time") };
    }

    let bytes = stderr.recv_timeout(PIPE_TIMEOUT).unwrap_or_default();
    let lines = last_lines(&bytes);
    if is_unrecognised(&bytes, &lines) {
        return AudioError::NoSamples;
    }

    let stderr = if lines.is_empty() { status.to_string() } else { lines };
    AudioError::Ffmpeg { hint: String::new(), stderr }
}

fn start(named: &Path, input: &Spooled, options: &DecodeOptions) -> io::Result<FfmpegProcess> {
    let program = sandbox::find_program(named).ok_or(io::ErrorKind::NotFound)?;
    let input = FfmpegInput::open(input)?;
    let sandbox = Sandbox::new(&program, &input, &options.ffmpeg_limits)?;

    let mut command = Command::new(program);
    command
        .arg0("ffmpeg")
        .args(["-nostdin", "-hide_banner", "-v", "error", "-threads", "1"])
        .args(["-protocol_whitelist", "pipe,file", "-format_whitelist", DEMUXERS])
        .args(["-dts_delta_threshold", LONGEST_GAP_SECONDS])
        .args(["-analyzeduration", PROBE_MICROSECONDS, "-probesize", PROBE_BYTES])
        .args(["-i", INPUT, "-vn", "-sn", "-dn", "-map_metadata", "-1", "-map_chapters", "-1"])
        // Matroska keeps the times of packets. Two channels are mixed here, by the same mixer as those of the built-in
        // decoders.
        .args(["-f", "matroska", "-c:a", "pcm_s16le", "-ac", "2", "-ar", "16000", "-"])
        // Some containers begin their time with the first stream that is in use, so the pictures are in use too; their
        // copy is dropped.
        .args(["-map", "0:v?", "-map", "0:a?", "-c", "copy", "-f", "null", "-"])
        .stdin(input.file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());

    sandbox.confine(&mut command);
    Ok(FfmpegProcess { process: command.spawn()?, status: None })
}

/// The upload as ffmpeg gets it.
pub(super) struct FfmpegInput {
    pub(super) file: File,
    pub(super) is_in_memory: bool,
}

impl FfmpegInput {
    fn open(input: &Spooled) -> io::Result<Self> {
        let ours = input.to_file()?;
        // Opened again for reading alone. A file that the server may not open again is passed on as it is.
        let file = File::open(format!("/proc/self/fd/{}", ours.as_raw_fd())).unwrap_or(ours);
        Ok(Self { file, is_in_memory: input.is_in_memory() })
    }
}

/// When to stop waiting for ffmpeg.
struct FfmpegDeadline<'a> {
    ends_at: Instant,
    timeout: Duration,
    keep_going: &'a KeepGoing<'a>,
}

impl FfmpegDeadline<'_> {
    fn check(&self) -> Result<(), AudioError> {
        if !(self.keep_going)() {
            Err(AudioError::Cancelled)
        } else if Instant::now() >= self.ends_at {
            Err(AudioError::FfmpegTimeout { seconds: self.timeout.as_secs() })
        } else {
            Ok(())
        }
    }
}

/// The output of ffmpeg, up to a limit.
struct FfmpegOutput<'a> {
    stdout: ChildStdout,
    process: Pid,
    /// When the process was seen to have exited while its pipe was still open.
    exited: Option<Instant>,
    limit_bytes: u64,
    read_bytes: u64,
    deadline: &'a FfmpegDeadline<'a>,
    /// Why the reading was stopped: symphonia does not pass on the errors of its source.
    stopped: &'a Mutex<Option<AudioError>>,
}

impl FfmpegOutput<'_> {
    /// Whether the process exited so long ago that no more output comes. Kills the processes that it left behind.
    fn is_drained(&mut self) -> io::Result<bool> {
        if self.exited.is_none() && kill_group_after_exit(self.process)? {
            self.exited = Some(Instant::now());
        }
        Ok(self.exited.is_some_and(|exited| exited.elapsed() > PIPE_TIMEOUT))
    }

    fn stop(&self, error: AudioError) -> io::Error {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        io::Error::other("stopped")
    }
}

impl Read for FfmpegOutput<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            self.deadline.check().map_err(|error| self.stop(error))?;
            match poll(&mut [PollFd::new(&self.stdout, PollFlags::IN)], Some(&POLL_INTERVAL)) {
                Ok(0) if self.is_drained().map_err(|error| self.stop(AudioError::FfmpegSpawn(error)))? => {
                    return Ok(0);
                }
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(self.stop(AudioError::FfmpegSpawn(error.into()))),
            }

            match self.stdout.read(out) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.stop(AudioError::FfmpegSpawn(error))),
                Ok(count) => {
                    self.read_bytes += count as u64;
                    if self.read_bytes > self.limit_bytes {
                        let limit = format!("{} bytes of output", self.limit_bytes);
                        return Err(self.stop(AudioError::FfmpegLimit { limit }));
                    }

                    return Ok(count);
                }
            }
        }
    }
}

/// Reads standard error to its end on a thread, so that a long message does not block ffmpeg.
fn last_bytes(mut stderr: ChildStderr) -> Receiver<Vec<u8>> {
    let (sender, last) = mpsc::channel();
    thread::spawn(move || {
        let mut kept = Vec::new();
        let mut buffer = [0; 1024];
        while let Ok(n @ 1..) = stderr.read(&mut buffer) {
            kept.extend_from_slice(&buffer[..n]);
            let surplus = kept.len().saturating_sub(STDERR_BYTES);
            kept.drain(..surplus);
        }

        // The receiver is gone where ffmpeg succeeded.
        let _ = sender.send(kept);
    });
    last
}

/// The last lines of standard error, without the names of ffmpeg's own parts (demuxers, addresses, its list of
/// formats).
fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace(INPUT, "the upload");

    let lines = text.lines().map(|line| without_part(line.trim()));
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.contains(NOT_WHITELISTED)).collect();
    lines[lines.len().saturating_sub(STDERR_LINES)..].join("; ")
}

/// Whether ffmpeg reports only that the upload has none of the formats that it may read.
fn is_unrecognised(all: &[u8], last_lines: &str) -> bool {
    let is_refusal = |line: &str| {
        let line = line.strip_prefix("Error opening input: ").unwrap_or(line);
        line.strip_prefix("the upload: ").unwrap_or(line) == "Invalid data found when processing input"
            || line.starts_with("Error opening input file")
    };

    memchr::memmem::find(all, NOT_WHITELISTED.as_bytes()).is_some()
        || (!last_lines.is_empty() && last_lines.split("; ").all(is_refusal))
}

/// A line without its prefixes of the form `[demuxer @ 0x55...]`.
fn without_part(mut line: &str) -> &str {
    while let Some((part, rest)) = line.strip_prefix('[').and_then(|line| line.split_once(']'))
        && part.contains(" @ 0x")
    {
        line = rest.trim_start();
    }

    line
}

/// The ffmpeg process. Its drop kills the process and its group.
struct FfmpegProcess {
    process: Child,
    /// Set once the process is reaped. From then on its number may belong to another process.
    status: Option<ExitStatus>,
}

impl FfmpegProcess {
    /// The exit status, if the process has exited. Kills what it left behind before it is reaped.
    fn exit_status(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() && kill_group_after_exit(self.pid()?)? {
            self.status = Some(self.process.wait()?);
        }
        Ok(self.status)
    }

    fn pid(&self) -> io::Result<Pid> {
        i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput.into())
    }
}

/// Kills the group of a process that has exited and is not reaped yet, so that its number belongs to no other process.
/// `false`: the process is running.
fn kill_group_after_exit(process: Pid) -> io::Result<bool> {
    let exited = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    if waitid(WaitId::Pid(process), exited)?.is_none() {
        return Ok(false);
    }

    kill_group(process)?;
    Ok(true)
}

fn kill_group(leader: Pid) -> io::Result<()> {
    match kill_process_group(leader, Signal::KILL) {
        // The process exited before it became the leader of a group.
        Err(Errno::SRCH) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Drop for FfmpegProcess {
    fn drop(&mut self) {
        if self.status.is_some() {
            return;
        }

        // These fail only where the process has exited already.
        let _ = self.pid().and_then(kill_group);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
