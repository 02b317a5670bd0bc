//! A command that somebody talks to while it runs: what is typed goes in as it comes, in a terminal where there is one.

use tokio::sync::mpsc::{Receiver, Sender};

use super::exec::{Exec, Exit, Told, told};
use super::session::Session;
use super::{GuestError, TtySize};
use crate::event::Channel;
use crate::wire::{ExecRequest, Hidden, Message};

/// The most one [`Typed::Bytes`] may hold, bytes.
pub const MAX_TYPED: usize = 4096;

/// What somebody does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Typed {
    /// Input, at most [`MAX_TYPED`].
    Bytes(Vec<u8>),
    /// The terminal has another size.
    Resized(TtySize),
}

/// Somebody who talks to a command. Neither end may be without limit: channels here are bounded.
#[derive(Debug)]
pub struct Line {
    /// The size of the terminal; without one the command gets pipes.
    pub size: Option<TtySize>,
    /// What is typed; closed at its end.
    pub typed: Receiver<Typed>,
    /// What is to be shown. Whoever does not take it makes the command wait.
    pub shown: Sender<(Channel, Vec<u8>)>,
}

impl Session {
    /// Runs a command to its end with somebody on the line. Of `exec`, `stdin` and `timeout` do not count.
    ///
    /// # Errors
    /// When the conversation fails. A command that fails is an [`Exit`].
    pub async fn shell(&mut self, exec: &Exec, line: &mut Line) -> Result<Exit, GuestError> {
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
                        Some(Typed::Bytes(bytes)) => Message::Data { bytes: Hidden(bytes) },
                        Some(Typed::Resized(size)) => Message::Resize { size },
                        None => Message::Eof {},
                    });
                    continue;
                }
            };
            match told(message)? {
                Told::Output(channel, bytes) => {
                    let used = bytes.len();
                    // Who has gone away sees nothing; the command goes on to its end.
                    let _ = line.shown.send((channel, bytes)).await;
                    self.used(used);
                }
                Told::Credit | Told::Noticed(_) => {}
                Told::Ended(exit) => return Ok(exit),
            }
        }
    }
}
