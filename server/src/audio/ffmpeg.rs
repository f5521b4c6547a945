//! What the built-in decoders cannot read goes to `ffmpeg`, when it is installed: a child process that gets the upload
//! as a seekable file descriptor and writes samples with their times to a pipe.

use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::pcm::{Pcm, PcmWriter};
use super::{AudioError, KeepGoing, container};
use crate::spool::Spooled;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ffmpeg {
    /// `ffmpeg` from `PATH`; without one, the built-in decoders have the last word.
    #[default]
    OnPath,
    /// This program; not to find it is an error.
    At(PathBuf),
    Off,
}

/// Whatever holds sound, by the names of ffmpeg 4 to 8; names that an ffmpeg does not know do no harm. Playlists, scripts
/// and manifests (hls, concat, dash, imf, sdp, ...) name other files or hosts, which an upload must not do; devices and
/// network protocols are no files; formats of images, subtitles and raw samples hold no sound that could be recognised.
const DEMUXERS: &str = "3dostr,4xm,aa,aac,aax,ac3,ac4,ace,acm,act,adf,adp,ads,adx,aea,afc,aiff,aix,alp,amr,amrnb,amrwb,apac,apc,\
ape,apm,aptx,aptx_hd,argo_asf,argo_brp,argo_cvg,asf,asf_o,ast,au,avi,avr,avs,bethsoftvid,bfi,bfstm,bink,binka,bit,bmv,boa,\
bonk,brstm,c93,caf,cine,codec2,daud,dcstr,derf,dfa,dfpwm,dhav,dsf,dsicin,dss,dts,dtshd,dv,dxa,ea,ea_cdata,eac3,epaf,evc,\
film_cpk,flac,flv,fsb,fwse,g722,g723_1,g726,g726le,g729,gdv,genh,gsm,gxf,hca,hcom,hnm,iamf,idcin,iff,ifv,ilbc,ipmovie,ircam,\
iss,ivr,jv,kux,kvag,laf,lc3,live_flv,lmlm4,loas,luodat,lvf,lxf,m4v,matroska,mca,mgsts,mlp,mlv,mm,mmf,mods,moflex,mov,mp3,mp4,\
mpc,mpc8,mpeg,mpegts,msf,msnwctcp,msp,mtaf,mtv,musx,mv,mvi,mxf,mxg,nc,nistsphere,nsp,nsv,nut,nuv,ogg,oma,osq,paf,pmp,\
pp_bnk,psxstr,pva,pvf,qcp,qoa,r3d,redspark,rka,rl2,rm,roq,rpl,rsd,rso,s337m,sbc,scd,sdns,sdr2,sds,sdx,sga,shn,siff,\
simbiosis_imx,sln,smjpeg,smk,smush,sol,sox,spdif,svag,svs,swf,tak,thp,tiertexseq,tmv,truehd,tta,txd,ty,usm,vag,vividas,\
vivo,vmd,voc,vpk,vqf,w64,wady,wav,wavarc,wc3movie,webm,wsaud,wsd,wsvqa,wtv,wv,wve,xa,xmd,xmv,xvag,xwma,yop";
/// The spool as `ffmpeg` opens it: a path, so that it can seek (an MP4 may keep its index at the end).
const INPUT: &str = "file:/proc/self/fd/0";
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// A clock that jumps on by less than this has a hole there, as for the built-in decoders; ffmpeg's own 10 s would close it.
const LONGEST_HOLE_SECONDS: &str = "3600";
/// How far it looks for the tracks of a file: audio may begin minutes after the video.
const PROBE_MICROSECONDS: &str = "300000000";
const PROBE_BYTES: &str = "100000000";
const STDERR_BYTES: usize = 2 << 10;
/// What it says of a format that it knows and may not read.
const NOT_WHITELISTED: &str = "not on whitelist";
const STDERR_LINES: usize = 3;

/// `None`: there is no ffmpeg to ask.
pub(super) fn decode(
    ffmpeg: &Ffmpeg,
    input: &Spooled,
    writer: PcmWriter,
    timeout: Duration,
    keep_going: &KeepGoing<'_>,
) -> Result<Option<Pcm>, AudioError> {
    let program = match ffmpeg {
        Ffmpeg::Off => return Ok(None),
        Ffmpeg::OnPath => PathBuf::from("ffmpeg"),
        Ffmpeg::At(program) => program.clone(),
    };
    let spawned = Command::new(program)
        .args(["-nostdin", "-hide_banner", "-v", "error", "-threads", "1"])
        .args(["-protocol_whitelist", "pipe,file", "-format_whitelist", DEMUXERS])
        .args(["-dts_delta_threshold", LONGEST_HOLE_SECONDS])
        .args(["-analyzeduration", PROBE_MICROSECONDS, "-probesize", PROBE_BYTES])
        .args(["-i", INPUT, "-vn", "-sn", "-dn", "-map_metadata", "-1", "-map_chapters", "-1"])
        // Matroska, since it keeps the times of packets; two channels, which are mixed here as everywhere.
        .args(["-f", "matroska", "-c:a", "pcm_s16le", "-ac", "2", "-ar", "16000", "-"])
        // For some containers time begins with the first stream that is in use: the pictures are, and go nowhere.
        .args(["-map", "0:v?", "-map", "0:a?", "-c", "copy", "-f", "null", "-"])
        .stdin(input.to_file()?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => Killed(child),
        Err(error) if error.kind() == io::ErrorKind::NotFound && *ffmpeg == Ffmpeg::OnPath => return Ok(None),
        Err(error) => return Err(AudioError::FfmpegSpawn(error)),
    };
    let (Some(stdout), Some(stderr)) = (child.0.stdout.take(), child.0.stderr.take()) else {
        return Err(AudioError::FfmpegSpawn(io::ErrorKind::BrokenPipe.into()));
    };
    let stderr = thread::spawn(move || last_bytes(stderr));

    let watch = Watch { deadline: Instant::now() + timeout, timeout, keep_going };
    let stopped = Mutex::new(None);
    let decoded = container::decode_stream(Output { stdout, watch: &watch, stopped: &stopped }, writer, keep_going);
    if let Some(error) = stopped.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let decoded = match decoded {
        // It may say why on its way out.
        Err(error) if error.is_worth_ffmpeg() => Err(error),
        Err(error) => return Err(error),
        // It has more, of which nothing is wanted.
        Ok((pcm, true)) => return Ok(Some(pcm)),
        Ok((pcm, false)) => Ok(pcm),
    };
    let status = loop {
        match child.0.try_wait().map_err(AudioError::FfmpegSpawn)? {
            Some(status) => break status,
            None => {
                watch.check()?;
                thread::sleep(Duration::from_millis(5));
            }
        }
    };
    if !status.success() {
        let bytes = stderr.join().unwrap_or_default();
        let stderr = last_lines(&bytes);
        if is_unrecognised(&bytes, &stderr) {
            return Err(AudioError::NoSamples);
        }
        let stderr = if stderr.is_empty() { status.to_string() } else { stderr };
        return Err(AudioError::Ffmpeg { hint: String::new(), stderr });
    }
    match decoded {
        Ok(pcm) => Ok(Some(pcm)),
        // There is nothing in the file that it could hear.
        Err(_) => Err(AudioError::NoSamples),
    }
}

/// When to stop waiting.
struct Watch<'a> {
    deadline: Instant,
    timeout: Duration,
    keep_going: &'a KeepGoing<'a>,
}

impl Watch<'_> {
    fn check(&self) -> Result<(), AudioError> {
        if !(self.keep_going)() {
            Err(AudioError::Cancelled)
        } else if Instant::now() >= self.deadline {
            Err(AudioError::FfmpegTimeout { seconds: self.timeout.as_secs() })
        } else {
            Ok(())
        }
    }
}

/// What it writes, for as long as it may.
struct Output<'a> {
    stdout: ChildStdout,
    watch: &'a Watch<'a>,
    /// Why the reading ended early: symphonia flattens errors of its source.
    stopped: &'a Mutex<Option<AudioError>>,
}

impl Output<'_> {
    fn stop(&self, error: AudioError) -> io::Error {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        io::Error::other("stopped")
    }
}

impl Read for Output<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            self.watch.check().map_err(|error| self.stop(error))?;
            match poll(&mut [PollFd::new(&self.stdout, PollFlags::IN)], Some(&POLL)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(self.stop(AudioError::FfmpegSpawn(error.into()))),
            }
            match self.stdout.read(out) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.stop(AudioError::FfmpegSpawn(error))),
                read => return read,
            }
        }
    }
}

fn last_bytes(mut stderr: ChildStderr) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = stderr.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..n]);
        let surplus = kept.len().saturating_sub(STDERR_BYTES);
        kept.drain(..surplus);
    }
    kept
}

/// Its last lines, without what names its own parts: demuxers, addresses, the list of what it may read.
fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace(INPUT, "the upload");
    let lines = text.lines().map(|line| without_part(line.trim()));
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.contains(NOT_WHITELISTED)).collect();
    lines[lines.len().saturating_sub(STDERR_LINES)..].join("; ")
}

/// Whether it says no more than that the upload is in none of the formats that it may read.
fn is_unrecognised(all: &[u8], last_lines: &str) -> bool {
    let is_refusal = |line: &str| {
        let line = line.strip_prefix("Error opening input: ").unwrap_or(line);
        line.strip_prefix("the upload: ").unwrap_or(line) == "Invalid data found when processing input"
            || line.starts_with("Error opening input file")
    };
    memchr::memmem::find(all, NOT_WHITELISTED.as_bytes()).is_some()
        || (!last_lines.is_empty() && last_lines.split("; ").all(is_refusal))
}

/// A line without `[demuxer @ 0x55...]` before it, of which there may be several.
fn without_part(mut line: &str) -> &str {
    while let Some((part, rest)) = line.strip_prefix('[').and_then(|line| line.split_once(']'))
        && part.contains(" @ 0x")
    {
        line = rest.trim_start();
    }
    line
}

/// Whoever stops listening ends the process.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
