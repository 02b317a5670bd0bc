//! QMP over a connected socket: typed commands from the `qapi` crate, and kiln's own reader.
//!
//! The crate's reader would end at the first event that its schema does not know, and a newer QEMU has newer events. Here an
//! unknown event is dropped and every known one is delivered, in order.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use qapi::Command;
use qapi::qmp;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;

/// Length limit of a line from QEMU, bytes. Its largest answer (a schema) is well below.
const LINE_LIMIT: u64 = 16 << 20;

/// Time limit of an answer. QEMU answers in milliseconds, and on a loaded host in seconds; a snapshot has to write buffered
/// data.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// An error between kiln and QEMU's monitor.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU refused a command.
    #[error("QEMU refused `{command}`: {reason}")]
    Refused {
        /// Name of the command.
        command: &'static str,
        /// QEMU's error message.
        reason: String,
    },
    /// The connection was closed, most often because QEMU has ended.
    #[error("the connection to QEMU's monitor is gone")]
    Gone,
    /// QEMU did not answer a command.
    #[error("QEMU did not answer `{0}` within a minute")]
    Unanswered(&'static str),
    /// QEMU sent a message that is not QMP.
    #[error("QEMU's monitor said something unexpected: {0}")]
    Protocol(String),
}

type Pending = Rc<RefCell<HashMap<u64, oneshot::Sender<Value>>>>;

/// The sending end. Commands may be sent from several places at once.
pub struct Qmp {
    write: Mutex<OwnedWriteHalf>,
    pending: Pending,
    next: RefCell<u64>,
}

impl Qmp {
    /// Reads the greeting, negotiates, and delivers events from then on. Dropping the receiver does not stop commands. The
    /// channel closes when QEMU does.
    ///
    /// # Errors
    /// When QEMU is gone or does not speak QMP.
    pub async fn connect(stream: UnixStream) -> Result<(Self, mpsc::UnboundedReceiver<qmp::Event>), QmpError> {
        let (read, write) = stream.into_split();
        let mut lines = BufReader::new(read);
        let greeting = next_line(&mut lines).await.ok_or(QmpError::Gone)?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Protocol(greeting.to_string()));
        }
        let pending = Pending::default();
        let (events, receiver) = mpsc::unbounded_channel();
        tokio::task::spawn_local(read_answers(lines, pending.clone(), events));
        let qmp = Self { write: Mutex::new(write), pending, next: RefCell::new(0) };
        qmp.execute(qmp::qmp_capabilities { enable: None }).await?;
        Ok((qmp, receiver))
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// When QEMU refuses or is gone.
    pub async fn execute<C: Command>(&self, command: C) -> Result<C::Ok, QmpError> {
        let answer = self.send(C::NAME, serde_json::to_value(&command).map_err(|e| protocol(&e))?).await?;
        serde_json::from_value(answer).map_err(|e| protocol(&e))
    }

    /// Sends a command as [`Qmp::execute`] does, with a descriptor beside it (`SCM_RIGHTS`, unix(7)), as `getfd` requires.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn hand_over<C: Command>(&self, command: C, descriptor: &impl AsRawFd) -> Result<C::Ok, QmpError> {
        // QEMU takes the descriptor with whatever byte it comes with: a space between commands.
        let write = self.write.lock().await;
        let stream: &UnixStream = write.as_ref();
        loop {
            stream.writable().await.map_err(|_| QmpError::Gone)?;
            match stream.try_io(Interest::WRITABLE, || send_descriptor(stream, descriptor)) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(QmpError::Gone),
            }
        }
        drop(write);
        self.execute(command).await
    }

    async fn send(&self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        let id = {
            let mut next = self.next.borrow_mut();
            *next += 1;
            *next
        };
        let (sender, receiver) = oneshot::channel();
        self.pending.borrow_mut().insert(id, sender);
        let mut line = serde_json::json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        self.write.lock().await.write_all(line.as_bytes()).await.map_err(|_| QmpError::Gone)?;
        let answered = timeout(ANSWER_TIMEOUT, receiver).await.map_err(|_| QmpError::Unanswered(command))?;
        let mut answer = answered.map_err(|_| QmpError::Gone)?;
        match answer.pointer("/error/desc").and_then(Value::as_str) {
            Some(reason) => Err(QmpError::Refused { command, reason: reason.to_owned() }),
            None => Ok(answer["return"].take()),
        }
    }
}

fn send_descriptor(stream: &UnixStream, descriptor: &impl AsRawFd) -> io::Result<usize> {
    let rights = [ControlMessage::ScmRights(&[descriptor.as_raw_fd()])];
    Ok(sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(b" ")], &rights, MsgFlags::empty(), None)?)
}

fn protocol(error: &serde_json::Error) -> QmpError {
    QmpError::Protocol(error.to_string())
}

async fn next_line(lines: &mut BufReader<OwnedReadHalf>) -> Option<Value> {
    let mut line = Vec::new();
    lines.take(LINE_LIMIT).read_until(b'\n', &mut line).await.ok()?;
    serde_json::from_slice(&line).ok()
}

async fn read_answers(
    mut lines: BufReader<OwnedReadHalf>,
    pending: Pending,
    events: mpsc::UnboundedSender<qmp::Event>,
) {
    while let Some(message) = next_line(&mut lines).await {
        if message.get("event").is_some() {
            if let Ok(event) = serde_json::from_value(message) {
                let _ = events.send(event);
            }
        } else if let Some(waiting) = message["id"].as_u64().and_then(|id| pending.borrow_mut().remove(&id)) {
            let _ = waiting.send(message);
        }
    }
    // Waiting callers learn that no answer will come.
    pending.borrow_mut().clear();
}
