//! SHA-256 of files and of whole disks.
//!
//! The digest of a disk is that of the bytes its guest sees, so it is the same for every format and compression the
//! disk is stored in. Reading and unpacking happen on the calling thread, hashing on another: together they run at
//! the speed of the slower one.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use sha2::{Digest, Sha256};

use super::chain::{Chain, ChainError};
use crate::error::{Fault, Kind};

/// Small enough that four of them stay in a processor's cache on their way from one thread to the other.
const PIECE: usize = 256 << 10;
const IN_FLIGHT: usize = 4;
static ZEROES: [u8; PIECE] = [0; PIECE];

/// No digest.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// The disk cannot be read.
    #[error(transparent)]
    Read(#[from] ChainError),
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

impl Fault for DigestError {
    fn kind(&self) -> Kind {
        match self {
            DigestError::Read(error) => error.kind(),
            DigestError::Stopped => Kind::Interrupted,
        }
    }
}

/// What goes to the hashing thread.
enum Piece {
    Bytes(Vec<u8>),
    Zeroes(u64),
}

/// Sees each piece of data of a disk, with its place in bytes, and may stop the work. Zeroes between are passed over, but
/// it is called for them now and then, with nothing, so that it can stop there as well.
pub type Watch<'a> = dyn FnMut(u64, &[u8]) -> ControlFlow<()> + 'a;

/// SHA-256 of the raw disk. `watch` sees all data on the way. Blocks the calling thread.
///
/// # Errors
/// When the chain cannot be read, or `watch` breaks.
pub fn disk_sha256(chain: &Chain, watch: &mut Watch<'_>) -> Result<[u8; 32], DigestError> {
    thread::scope(|scope| {
        let (pieces, inbox) = sync_channel(IN_FLIGHT);
        let (empties, spare) = channel();
        let hashing = scope.spawn(move || hash(&inbox, &empties));
        let read = send_all(chain, &pieces, &spare, watch);
        drop(pieces);
        // The hashing thread ends when the sender is gone, and has nothing in it that could panic.
        let digest = hashing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        read.map(|()| digest)
    })
}

fn hash(inbox: &Receiver<Piece>, empties: &Sender<Vec<u8>>) -> [u8; 32] {
    let mut sha = Sha256::new();
    for piece in inbox {
        match piece {
            Piece::Bytes(bytes) => {
                sha.update(&bytes);
                // Nobody takes buffers back once everything is read.
                let _ = empties.send(bytes);
            }
            Piece::Zeroes(count) => hash_zeroes(&mut sha, count),
        }
    }
    sha.finalize().into()
}

/// Hashes this many zeroes.
pub(super) fn hash_zeroes(sha: &mut Sha256, mut count: u64) {
    while count > 0 {
        let now = usize::try_from(count).unwrap_or(PIECE).min(PIECE);
        sha.update(&ZEROES[..now]);
        count -= now as u64;
    }
}

/// Sends the disk from its first byte to its last. Zeroes go in pieces too, so that stopping works.
fn send_all(
    chain: &Chain,
    pieces: &SyncSender<Piece>,
    spare: &Receiver<Vec<u8>>,
    watch: &mut Watch<'_>,
) -> Result<(), DigestError> {
    for extent in chain.extents() {
        let extent = extent?;
        let mut at = extent.range.start;
        while at < extent.range.end {
            let left = extent.range.end - at;
            let length = left.min(if extent.data { PIECE as u64 } else { 64 << 20 });
            let (piece, seen) = if extent.data {
                let bytes = read_piece(chain, at, length, spare)?;
                let seen = watch(at, &bytes);
                (Piece::Bytes(bytes), seen)
            } else {
                (Piece::Zeroes(length), watch(at, &[]))
            };
            at += length;
            // A hashing thread that died is reported when it is joined.
            if seen.is_break() || pieces.send(piece).is_err() {
                return Err(DigestError::Stopped);
            }
        }
    }
    Ok(())
}

fn read_piece(chain: &Chain, at: u64, length: u64, spare: &Receiver<Vec<u8>>) -> Result<Vec<u8>, ChainError> {
    let mut bytes = spare.try_recv().unwrap_or_default();
    bytes.resize(usize::try_from(length).unwrap_or(PIECE), 0);
    chain.read_at(at, &mut bytes)?;
    Ok(bytes)
}
