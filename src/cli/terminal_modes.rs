//! The modes of this terminal, which a guest that writes to it may change in any way: restored when the guest is gone.
//!
//! Not all modes of a terminal can be queried, so they are set to what programs expect of a terminal that is handed to them.
//! The line discipline and the flags of the descriptors can be read, and are restored. Nothing on the screen is erased.

use std::io::{self, IsTerminal, Write, stderr, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::fstat;
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};

/// Time to wait for a terminal that takes no output, milliseconds.
const PATIENCE: u16 = 1000;
/// Ends an escape sequence that the guest left incomplete (CAN, ST), VT52 mode, which understands no other sequence, and what
/// takes output away from the screen: a printer, a status line, and synchronized output.
const END_SEQUENCE: &str = "\x18\x1b\\\x1b<\x1b[4i\x1b[?4i\x1b[0$}\x1b[0$~\x1b[?2026l";
/// Saves the title (xterm's window operations).
const SAVE_TITLE: &str = "\x1b[22;0t";
const RESTORE_TITLE: &str = "\x1b[23;0t";
/// Resets colours, attributes, protection and links; character sets and UTF-8; eight-bit controls; insert, keyboard lock,
/// local echo, newline mode.
const ATTRIBUTES: &str =
    concat!("\x1b[m\x1b[0\"q\x1b]8;;\x1b\\", "\x1b(B\x1b)B\x1b*B\x1b+B\x0f\x1b%G\x1b F\x1b[4l\x1b[2l\x1b[12h\x1b[20l",);
/// Resets cursor keys, keypad and backarrow key; smooth scrolling, reverse video, autowrap, auto-repeat, changes of the
/// width, reverse wrap, left and right margins, scrolling of graphics; makes the cursor visible, in its usual form; turns the
/// lights of the keyboard off.
const DISPLAY: &str = concat!(
    "\x1b[?1l\x1b>\x1b[?66;67l\x1b[?4l\x1b[?5l\x1b[?7h\x1b[?8h",
    "\x1b[?40l\x1b[?45l\x1b[?69l\x1b[?80l\x1b[?25h\x1b[0 q\x1b[0q",
);
/// Turns off reports of every kind: of the mouse and DEC's locator, of the focus, the colour scheme and the size, and
/// bracketed paste; resets the encoding of keys (xterm's `modifyCursorKeys` and its kin, kitty's stack, Windows' records).
const REPORTS: &str = concat!(
    "\x1b[?9;1000;1001;1002;1003;1004;1005;1006;1015;1016l",
    "\x1b[0'z\x1b[?2004l\x1b[?2031l\x1b[?2048l\x1b[?9001l",
    "\x1b[>1m\x1b[>2m\x1b[>4m\x1b[<99u",
);
/// Resets the palette, the colours of text, background, cursor, pointer and selection, and the form of the pointer.
const COLOURS: &str = concat!(
    "\x1b]104\x1b\\\x1b]105\x1b\\\x1b]110\x1b\\\x1b]111\x1b\\",
    "\x1b]112\x1b\\\x1b]113\x1b\\\x1b]114\x1b\\\x1b]117\x1b\\\x1b]119\x1b\\\x1b]22;\x1b\\",
);
/// Leaves the alternate screen. That goes to the saved position of the cursor, even where the screen is not in use, so the
/// position of this screen is saved first.
const LEAVE_ALTERNATE: &str = "\x1b7\x1b[?1049l";
/// Resets origin mode and scroll region. Neither can be reset without moving the cursor, so it is moved to a new line at the
/// bottom, below all output.
const MARGINS: &str = "\x1b[?6l\x1b[r\x1b[9999;1H\r\n";
/// Columns for which tab stops are set, every eighth.
const TAB_COLUMNS: usize = 400;

/// The saved state of the terminal, while it is lent.
static LENT: Mutex<Option<SavedTerminal>> = Mutex::new(None);

/// Changes that a guest may have made to the cursor's margins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CursorMargins {
    /// None, according to its output.
    Untouched,
    /// The guest may have set a scroll region or origin mode.
    MayBeSet,
}

/// Loan of this terminal to a guest. Dropping it resets every mode.
#[derive(Debug)]
pub(super) struct TerminalLease(());

impl TerminalLease {
    /// Saves the state of the terminal, if there is one.
    pub(super) fn take(margins: CursorMargins) -> io::Result<Self> {
        let saved = SavedTerminal::read(margins)?;
        write_to_terminals(SAVE_TITLE);
        *LENT.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        Ok(Self(()))
    }
}

impl Drop for TerminalLease {
    fn drop(&mut self) {
        restore_terminal();
    }
}

/// Resets a lent terminal; one that is not lent is left alone. Also for the end of a process that drops nothing.
pub(super) fn restore_terminal() {
    let saved = LENT.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(saved) = saved {
        saved.restore();
    }
}

/// Records that the guest has set a scroll region or origin mode.
pub(super) fn note_margins() {
    if let Some(saved) = &mut *LENT.lock().unwrap_or_else(PoisonError::into_inner) {
        saved.margins = CursorMargins::MayBeSet;
    }
}

struct SavedTerminal {
    settings: Option<Termios>,
    /// Flags of standard input, output and error. QEMU makes its terminal non-blocking, and so that of every program.
    flags: [Option<OFlag>; 3],
    margins: CursorMargins,
}

impl SavedTerminal {
    fn read(margins: CursorMargins) -> io::Result<Self> {
        let settings = if stdin().is_terminal() { Some(tcgetattr(stdin())?) } else { None };
        let flags = [read_flags(stdin()), read_flags(stdout()), read_flags(stderr())];
        Ok(Self { settings, flags, margins })
    }

    fn restore(&self) {
        let [input, output, errors] = self.flags;
        restore_flags(stdin(), input);
        restore_flags(stdout(), output);
        restore_flags(stderr(), errors);
        write_to_terminals(&reset_sequence(self.margins));
        if let Some(settings) = &self.settings {
            let _ = tcsetattr(stdin(), SetArg::TCSADRAIN, settings);
        }
    }
}

/// Writes to the terminals that the guest's output goes to. Errors are ignored: a terminal may be gone, or take no output.
fn write_to_terminals(text: &str) {
    let _ = stdout().flush();
    for stream in output_terminals(stdout().as_fd(), stderr().as_fd()) {
        let mut watched = [PollFd::new(stream, PollFlags::POLLOUT)];
        if poll(&mut watched, PollTimeout::from(PATIENCE)).is_ok_and(|ready| ready > 0) {
            let _ = nix::unistd::write(stream, text.as_bytes());
        }
    }
}

fn read_flags(stream: impl AsFd) -> Option<OFlag> {
    fcntl(stream, FcntlArg::F_GETFL).ok().map(OFlag::from_bits_retain)
}

fn restore_flags(stream: impl AsFd, flags: Option<OFlag>) {
    // An error means that the descriptor is closed, and needs no reset.
    let _ = flags.map(|flags| fcntl(stream, FcntlArg::F_SETFL(flags)));
}

/// Returns those of standard output and error that are terminals, without duplicates.
fn output_terminals<'a>(output: BorrowedFd<'a>, errors: BorrowedFd<'a>) -> Vec<BorrowedFd<'a>> {
    let is_same = match (fstat(output), fstat(errors)) {
        (Ok(one), Ok(other)) => one.st_rdev == other.st_rdev,
        _ => false,
    };
    let mut terminals: Vec<_> = [output, errors].into_iter().filter(IsTerminal::is_terminal).collect();
    if is_same {
        terminals.truncate(1);
    }
    terminals
}

/// Returns the sequence that resets every mode of a terminal. Modes are reset before and after the alternate screen is left,
/// since leaving it restores those that were saved when it was entered.
fn reset_sequence(margins: CursorMargins) -> String {
    let modes = [ATTRIBUTES, DISPLAY, REPORTS].concat();
    let bottom = match margins {
        CursorMargins::Untouched => "",
        CursorMargins::MayBeSet => MARGINS,
    };
    [END_SEQUENCE, &modes, LEAVE_ALTERNATE, &modes, COLOURS, &tab_stops(), bottom, RESTORE_TITLE].concat()
}

/// Returns the sequence that sets tab stops at every eighth column only, and leaves the cursor where it is.
fn tab_stops() -> String {
    let stops: String = (9..TAB_COLUMNS).step_by(8).map(|column| format!("\x1b[{column}G\x1bH")).collect();
    format!("\x1b7\x1b[3g{stops}\x1b8")
}

/// Detects sequences that set margins in a guest's output.
#[derive(Debug, Default)]
pub(super) struct MarginWatch {
    state: SequenceState,
    parameters: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum SequenceState {
    #[default]
    Text,
    Escape,
    Control,
}

/// CSI as one byte.
const CSI: u8 = 0x9b;
/// Number of parameters of a sequence that are kept; no terminal takes more.
const MOST_PARAMETERS: usize = 256;

impl MarginWatch {
    /// Returns whether these bytes end a sequence that sets a scroll region (DECSTBM), origin mode or left and right
    /// margins (DECOM and DECLRMM).
    pub(super) fn feed(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().fold(false, |found, byte| self.take(*byte) | found)
    }

    fn take(&mut self, byte: u8) -> bool {
        match (self.state, byte) {
            (_, 0x1b) => self.state = SequenceState::Escape,
            (SequenceState::Escape, b'[') | (_, CSI) => {
                self.state = SequenceState::Control;
                self.parameters.clear();
            }
            (SequenceState::Control, 0x20..=0x3f) if self.parameters.len() < MOST_PARAMETERS => {
                self.parameters.push(byte);
            }
            // Control characters act within a sequence and do not end it.
            (SequenceState::Control, 0x00..=0x17) => {}
            (SequenceState::Control, end) => {
                self.state = SequenceState::Text;
                return self.sets_margins(end);
            }
            _ => self.state = SequenceState::Text,
        }
        false
    }

    fn sets_margins(&self, end: u8) -> bool {
        match self.parameters.strip_prefix(b"?") {
            Some(modes) => end == b'h' && modes.split(|byte| *byte == b';').any(|mode| matches!(mode, b"6" | b"69")),
            None => end == b'r',
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets_margins(pieces: &[&str]) -> bool {
        let mut watch = MarginWatch::default();
        pieces.iter().fold(false, |found, piece| watch.feed(piece.as_bytes()) | found)
    }

    #[test]
    fn g20_margins_are_seen_however_they_come() {
        assert!(
            sets_margins(&["text\x1b[2;", "20r"]) && sets_margins(&["\x1b", "[r"]) && sets_margins(&["\x1b[?7;6h"])
        );
        assert!(sets_margins(&["\x1b[2\x07;20r"]) && sets_margins(&["\x1b[?1;\x1b[1;3r"]));
        assert!(!sets_margins(&["\x1b[?6l\x1b[?7h\x1b[6h rh [5r", "\x1b[?1r"]));
    }

    #[test]
    fn g20_nothing_is_erased_and_the_cursor_is_moved_only_for_margins() {
        let kept = reset_sequence(CursorMargins::Untouched);
        for erasing in ["\x1bc", "\x1b[2J", "\x1b[J", "\x1b[0J", "\x1b[K", "\x1b[!p", "\x1b[H", "\x1b[r", "\x1b[?6l"] {
            assert!(!kept.contains(erasing), "{erasing:?}");
        }
        assert!(reset_sequence(CursorMargins::MayBeSet).contains("\x1b[?6l\x1b[r"));
    }
}
