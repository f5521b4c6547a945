//! What the built-in decoders cannot read goes to `ffmpeg`, when it is installed: a child process that gets the upload
//! as a seekable file descriptor and writes raw samples to a pipe.

use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::pcm::{Pcm, PcmWriter};
use super::{AudioError, KeepGoing};
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

/// Media files only. Playlists and scripts (hls, concat, dash, ...) name other files, which an upload must not do.
const DEMUXERS: &str = "aac,ac3,act,adx,aiff,aix,amr,amrnb,amrwb,ape,apm,asf,ast,au,avi,bit,boa,caf,codec2,dsf,dts,dtshd,eac3,\
flac,flv,g722,g723_1,g726,g726le,g729,gsm,iff,ircam,loas,m4v,matroska,webm,mlp,mov,mp3,mp4,mpc,mpc8,mpeg,mpegts,mxf,\
nut,ogg,oma,qcp,rm,rso,sbc,sds,shn,smjpeg,sol,sox,spdif,swf,tak,truehd,tta,voc,vqf,w64,wav,wc3movie,wtv,wv,xmv,xwma";
/// The spool as `ffmpeg` opens it: a path, so that it can seek (an MP4 may keep its index at the end).
const INPUT: &str = "file:/proc/self/fd/0";
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
const STDERR_BYTES: usize = 2 << 10;
const STDERR_LINES: usize = 3;

/// `None`: there is no ffmpeg to ask.
pub(super) fn decode(
    ffmpeg: &Ffmpeg,
    input: &Spooled,
    mut writer: PcmWriter,
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
        .args([
            "-i",
            INPUT,
            "-vn",
            "-sn",
            "-dn",
            "-f",
            "s16le",
            "-acodec",
            "pcm_s16le",
            "-ac",
            "1",
            "-ar",
            "16000",
            "-",
        ])
        .stdin(input.to_file()?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => Killed(child),
        Err(error) if error.kind() == io::ErrorKind::NotFound && *ffmpeg == Ffmpeg::OnPath => return Ok(None),
        Err(error) => return Err(AudioError::FfmpegSpawn(error)),
    };
    let (Some(mut stdout), Some(stderr)) = (child.0.stdout.take(), child.0.stderr.take()) else {
        return Err(AudioError::FfmpegSpawn(io::ErrorKind::BrokenPipe.into()));
    };
    let stderr = thread::spawn(move || last_bytes(stderr));

    let deadline = Instant::now() + timeout;
    let check = || {
        if !keep_going() {
            Err(AudioError::Cancelled)
        } else if Instant::now() >= deadline {
            Err(AudioError::FfmpegTimeout { seconds: timeout.as_secs() })
        } else {
            Ok(())
        }
    };
    let mut buffer = vec![0; 64 << 10];
    let mut filled = 0;
    loop {
        check()?;
        match poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&POLL)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(AudioError::FfmpegSpawn(error.into())),
        }
        let n = match stdout.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(AudioError::FfmpegSpawn(error)),
        };
        filled += n;
        // A read may end in the middle of a sample.
        let whole = filled - filled % 2;
        writer.write_s16le(&buffer[..whole])?;
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
    let status = loop {
        match child.0.try_wait().map_err(AudioError::FfmpegSpawn)? {
            Some(status) => break status,
            None => {
                check()?;
                thread::sleep(Duration::from_millis(5));
            }
        }
    };
    if !status.success() {
        let stderr = stderr.join().map(|bytes| last_lines(&bytes)).unwrap_or_default();
        let stderr = if stderr.is_empty() { status.to_string() } else { stderr };
        return Err(AudioError::Ffmpeg { stderr });
    }
    if writer.len_samples() == 0 {
        return Err(AudioError::NoSamples);
    }
    writer.finish().map(Some)
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

fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace(INPUT, "the upload");
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(STDERR_LINES)..].join("; ")
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
