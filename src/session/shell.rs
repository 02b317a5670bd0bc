//! Runs an interactive command: input is sent as it is typed, in a terminal if there is one.

use std::any::Any;
use std::io;

use tokio::sync::mpsc::{Receiver, Sender};

use crate::event::Channel;
use crate::wire::{ExecRequest, HiddenBytes, Message};

use super::connection::Session;
use super::exec::{Exec, ExecEvent, Exit, told};
use super::{GuestError, TtySize};

/// Size limit of one [`TerminalInput::Bytes`], bytes.
pub const MAX_TYPED: usize = 4096;

/// Input of a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TerminalInput {
    /// Input, at most [`MAX_TYPED`].
    Bytes(Vec<u8>),
    /// The new size of the terminal.
    Resized(TtySize),
}

/// The person's end of an interactive command. Its channels are bounded.
#[derive(Debug)]
pub struct TerminalLine {
    /// The size of the terminal; without one the command gets pipes.
    pub size: Option<TtySize>,
    /// The input; closed at its end.
    pub typed: Receiver<TerminalInput>,
    /// The output. A receiver that does not take it makes the command wait.
    pub shown: Sender<(Channel, Vec<u8>)>,
}

/// A function that takes over a terminal. It is called only when the guest is ready, since it changes how the terminal
/// behaves.
pub type Attach = fn() -> io::Result<AttachedTerminal>;

/// A terminal that was taken over. Dropping it first closes the line and then gives the terminal back.
pub struct AttachedTerminal {
    /// Channels of the input and output.
    pub line: TerminalLine,
    /// Type of the terminal, as in `TERM`.
    pub term: String,
    /// Value that gives the terminal back when it is dropped.
    pub restore: Box<dyn Any + Send>,
}

impl Session {
    /// Runs an interactive command to its end. Ignores `stdin` and `timeout` of `exec`.
    ///
    /// # Errors
    /// When the connection fails. A command that fails is an [`Exit`].
    pub async fn shell(&mut self, exec: &Exec, line: &mut TerminalLine) -> Result<Exit, GuestError> {
        let request =
            ExecRequest { tty: line.size.clone(), stdin: line.size.is_none(), timeout: None, ..exec.request() };
        self.start(&request).await?;
        let mut typing = true;
        loop {
            let room = self.credit >= MAX_TYPED;
            let message = tokio::select! {
                message = self.next() => message?,
                typed = line.typed.recv(), if typing && room => {
                    typing = typed.is_some();
                    self.queue(&match typed {
                        Some(TerminalInput::Bytes(bytes)) => Message::Data { bytes: HiddenBytes(bytes) },
                        Some(TerminalInput::Resized(size)) => Message::Resize { size },
                        None => Message::Eof {},
                    });
                    continue;
                }
            };
            match told(message)? {
                ExecEvent::Output(channel, bytes) => {
                    let used = bytes.len();
                    // If the receiver is gone, the output is dropped, and the command runs on to its end.
                    let _ = line.shown.send((channel, bytes)).await;
                    self.used(used);
                }
                ExecEvent::Credit | ExecEvent::Noticed(_) => {}
                ExecEvent::Ended(exit) => return Ok(exit),
            }
        }
    }
}
