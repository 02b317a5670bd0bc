//! The protocol between kiln and its agent: frames, messages and the streams of files. Both ends compile this module, so it
//! uses only the standard library.
//!
//! ```text
//! frame    = length: u32 LE, body                       length of the body, 5 ..= MAX_FRAME
//! body     = code: u8, stream: u32 LE, fields           see `message`
//! greeting = MAGIC, frame of a Hello, Welcome, Ready, Resume or Tunnel, body <= MAX_GREETING
//! ```
//!
//! A port may hold stale bytes of an earlier boot. Until a greeting was answered, a [`Splitter`] therefore searches for
//! [`MAGIC`] and discards everything else. Later a greeting may occur between any two frames: the peer has started again.
//!
//! Data in a stream is limited by credit: each end may send [`WINDOW`] bytes per stream and direction, and more only after
//! the other end granted it with `Credit`.

pub mod boot_mount;
pub mod boot_mounts;
pub mod cloud_init;
pub mod code;
pub mod device_name;
pub mod direct_boot;
pub mod fstab;
pub mod guest_files;
pub mod listing;
pub mod message;
pub mod mount_unit;
pub mod mounts;
pub mod network;
pub mod path_pattern;
pub mod planted;
pub mod power_words;
pub mod sealing;
pub mod sparse_blocks;
pub mod tree;

use code::{Code, DecodeError, Fields};
pub use message::{
    Aftermath, Class, ExecRequest, Exit, Frame, HiddenBytes, LateOutput, LeftProcess, Message, SealReport, SealRequest,
    Secret,
};

/// The folders of systemd units on a disk; units in earlier ones replace those in later ones (systemd.unit(5)).
pub const UNIT_FOLDERS: [&str; 4] =
    ["/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// The folder of the scripts of running steps. It is not in `/tmp`, where a step may have put anything.
pub const SCRIPT_FOLDER: &str = "/run/kiln/scripts";

/// The version of the protocol. It changes when a message changes its meaning.
pub const VERSION: u16 = 1;

/// A digest of the sources that an end was built from: 16 hex digits, computed by `build.rs`.
pub const BUILD: &str = env!("KILN_AGENT_BUILD");

/// The name of the virtio-serial port.
pub const PORT: &str = "kiln.agent.0";

/// The serial number of the disk that becomes the image, among those of a guest.
pub const DISK_SERIAL: &str = "kiln-disk";

/// Precedes each greeting. Read as a length, its first four bytes are far above [`MAX_FRAME`].
pub const MAGIC: [u8; 16] = *b"KILN\x00\xff\xfe greeting";

/// The largest body of a frame, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;

/// The largest body of a greeting, in bytes: at most so much may be lost after a stale magic.
pub const MAX_GREETING: usize = 4096;

/// The most payload of one data frame, in bytes.
pub const MAX_DATA: usize = MAX_FRAME - 16;

/// How many bytes of a stream may be in transit in one direction.
pub const WINDOW: usize = 1 << 20;

/// The largest encoded [`ExecRequest`], in bytes; it is sent in parts.
pub const MAX_EXEC: usize = WINDOW;

/// The most output of a step that is sent as it comes, in bytes; of the output beyond, only the end is sent.
pub const MAX_OUTPUT: usize = 32 << 20;

const LENGTH: usize = 4;

/// Appends the frame to `out`, with the magic if it is a greeting.
pub fn put_frame(stream: u32, message: &Message, out: &mut Vec<u8>) {
    if message.is_greeting() {
        out.extend_from_slice(&MAGIC);
    }
    let start = out.len();
    0u32.put(out);
    message.put_body(stream, out);
    let length = out.len() - start - LENGTH;
    debug_assert!(length <= MAX_FRAME, "a frame of {length} bytes");
    out[start..start + LENGTH].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

/// Splits the bytes of a port into frames. Holds no more than one frame and what was pushed last.
#[derive(Debug, Default)]
pub struct Splitter {
    buffer: Vec<u8>,
    start: usize,
    in_step: bool,
}

impl Splitter {
    /// Creates a splitter for a port with stale bytes: until [`Splitter::trust`], only greetings are returned and all else
    /// is discarded.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the peer, which has proven that it answers this end: from here on every byte must belong to a frame.
    pub fn trust(&mut self) {
        self.in_step = true;
    }

    /// Searches for greetings again, as on a new port.
    pub fn doubt(&mut self) {
        self.in_step = false;
    }

    /// Adds bytes from the port. Call [`Splitter::next_frame`] until it returns `None` before pushing more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns how many bytes are not split yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Returns the next whole frame, if there is one.
    ///
    /// # Errors
    /// When bytes are no frame, once trusted; when a greeting has another version, at any time.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, DecodeError> {
        if self.in_step { self.frame_in_step() } else { self.seek_greeting() }
    }

    fn frame_in_step(&mut self) -> Result<Option<Frame>, DecodeError> {
        let rest = &self.buffer[self.start..];
        let (skip, limit) = if rest.starts_with(&MAGIC) { (MAGIC.len(), MAX_GREETING) } else { (0, MAX_FRAME) };
        if skip == 0 && rest.len() >= LENGTH && MAGIC.starts_with(&rest[..rest.len().min(MAGIC.len())]) {
            return Ok(None);
        }
        let Some(body) = body(&rest[skip..], limit)? else { return Ok(None) };
        let frame = Frame::decode(body)?;
        if (skip > 0) != frame.message.is_greeting() {
            return Err(DecodeError::Misplaced);
        }
        self.start += skip + LENGTH + body.len();
        Ok(Some(frame))
    }

    fn seek_greeting(&mut self) -> Result<Option<Frame>, DecodeError> {
        while let Some(at) = find(&self.buffer[self.start..]) {
            self.start += at;
            let rest = &self.buffer[self.start + MAGIC.len()..];
            match body(rest, MAX_GREETING) {
                // The length after a stale magic may include a true greeting that follows it.
                Ok(None) if find(rest).is_none() => return Ok(None),
                Ok(None) | Err(_) => self.start += 1,
                Ok(Some(body)) => match Frame::decode(body) {
                    Ok(frame) if frame.message.is_greeting() => {
                        self.start += MAGIC.len() + LENGTH + body.len();
                        return Ok(Some(frame));
                    }
                    Err(other @ DecodeError::Version { .. }) => return Err(other),
                    _ => self.start += 1,
                },
            }
        }
        let kept = self.buffer.len().saturating_sub(MAGIC.len() - 1);
        self.start = self.start.max(kept);
        Ok(None)
    }
}

fn find(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MAGIC.len()).position(|window| window == MAGIC)
}

fn body(bytes: &[u8], limit: usize) -> Result<Option<&[u8]>, DecodeError> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > limit {
        return Err(DecodeError::Length(length));
    }
    Ok(rest.get(..length))
}

impl Frame {
    /// Parses one body.
    ///
    /// # Errors
    /// When [`put_frame`] would not have written it.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(body);
        let code = u8::get(&mut fields)?;
        let stream = u32::get(&mut fields)?;
        let message = Message::get_fields(code, &mut fields)?;
        fields.end()?;
        Ok(Self { stream, message })
    }
}

#[cfg(test)]
mod tests;
