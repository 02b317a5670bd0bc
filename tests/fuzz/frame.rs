//! The bytes of a port, cut into frames: whatever comes out is what would have gone in, in pieces of any size.
//!
//! The first byte says whether the peer is trusted, the second how large the pieces are.

use kiln::wire::{Frame, MAX_FRAME, Splitter, put_frame};

pub fn check(input: &[u8]) {
    let [trusted, piece, bytes @ ..] = input else { return };
    let trusted = *trusted % 2 == 1;
    let (frames, read) = cut(bytes, usize::from(*piece) + 1, trusted);
    if trusted {
        assert_eq!(cut(bytes, bytes.len().max(1), trusted), (frames.clone(), read), "pieces make a difference");
        let mut again = Vec::new();
        for frame in &frames {
            put_frame(frame.stream, &frame.message, &mut again);
        }
        assert!(bytes.starts_with(&again), "not what was sent");
    }
}

/// The frames, and whether all of the bytes were taken for the port's.
fn cut(bytes: &[u8], piece: usize, trusted: bool) -> (Vec<Frame>, bool) {
    let mut splitter = Splitter::new();
    if trusted {
        splitter.trust();
    }
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece) {
        splitter.push(piece);
        loop {
            match splitter.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, false),
            }
        }
        assert!(splitter.waiting() <= 2 * MAX_FRAME, "{} bytes are kept", splitter.waiting());
    }
    (frames, true)
}
