//! Begins and resumes sessions: after a boot, a reboot, and a checkpoint.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::wire::Message;
use crate::wire::message::{Facts, ProtocolVersion};

use super::GuestError;
use super::connection::{Session, unexpected};
use super::error::printable;

/// The agent's description of its guest. Strings contain no control characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Id of the boot, different after each boot.
    pub boot_id: String,
    /// cloud-init's instance-id, if it was set by then.
    pub instance_id: Option<String>,
    /// The operating system's name for people.
    pub os: String,
    /// The operating system's `ID`, such as `debian`.
    pub os_id: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Machine architecture.
    pub arch: String,
    /// The guest's clock at the time of the hello.
    pub clock: SystemTime,
    /// Whether systemd is PID 1.
    pub systemd: bool,
}

impl Session {
    /// Waits for the agent's hello, discarding everything else that is in the port. There is no time limit: the caller races
    /// it with its deadline and the machine's death.
    ///
    /// # Errors
    /// When the port closes, or an agent of another build answers.
    pub async fn accept(stream: UnixStream) -> Result<(Self, Hello), GuestError> {
        let mut session = Self::new(stream);
        let hello = session.greet().await?;
        Ok((session, hello))
    }

    /// Waits for a hello with another boot id on the same port, after a reboot.
    ///
    /// # Errors
    /// As [`Session::accept`].
    pub async fn reconnect(&mut self) -> Result<Hello, GuestError> {
        self.splitter.doubt();
        self.out.clear();
        self.written = 0;
        self.greet().await
    }

    /// Makes the agent hold still for a checkpoint; only [`Session::resume`] may follow.
    ///
    /// # Errors
    /// When it is busy or does not answer.
    pub async fn park(&mut self) -> Result<(), GuestError> {
        let asked = Message::Park { token: nonce() };
        match self.ask(&asked).await? {
            told if told == asked => {
                self.splitter.doubt();
                Ok(())
            }
            other => Err(unexpected(other)),
        }
    }

    /// Wakes the parked agent in the machine that continued after the checkpoint.
    ///
    /// # Errors
    /// When the port closes, or an agent answers that was not parked.
    pub async fn resume(&mut self) -> Result<(), GuestError> {
        let nonce = nonce();
        self.put(0, &Message::Resume { origin: ProtocolVersion, nonce });
        loop {
            match self.splitter.next_frame()?.map(|frame| frame.message) {
                Some(Message::Resume { nonce: told, .. }) if told == nonce => break,
                Some(Message::Hello { .. }) => return Err(GuestError::Restarted),
                Some(_) => {}
                None => self.exchange().await?,
            }
        }
        self.splitter.trust();
        Ok(())
    }

    /// Wakes the parked agent of a checkpoint that was loaded into another machine. `boot_id` is that of its hello when it
    /// was accepted. There is no time limit, as in [`Session::accept`].
    ///
    /// # Errors
    /// As [`Session::resume`].
    pub async fn resumed(stream: UnixStream, boot_id: &str) -> Result<Self, GuestError> {
        let mut session = Self::new(stream);
        session.boot_id = boot_id.into();
        session.resume().await?;
        Ok(session)
    }

    async fn greet(&mut self) -> Result<Hello, GuestError> {
        let mut asked: Option<(u64, Facts)> = None;
        loop {
            match self.splitter.next_frame()?.map(|frame| frame.message) {
                // A hello from before the reboot, or one that was repeated before our answer arrived.
                Some(Message::Hello { facts, .. })
                    if facts.boot_id != self.boot_id
                        && asked.as_ref().is_none_or(|(_, known)| known.start != facts.start) =>
                {
                    let nonce = nonce();
                    self.put(0, &Message::Welcome { origin: ProtocolVersion, nonce });
                    asked = Some((nonce, facts));
                    // A guest that only sends is not owed more than one answer.
                    while !self.out.is_empty() {
                        self.exchange().await?;
                    }
                }
                Some(Message::Ready { nonce }) => {
                    if let Some((_, facts)) = asked.take_if(|(expected, _)| *expected == nonce) {
                        self.splitter.trust();
                        self.boot_id.clone_from(&facts.boot_id);
                        return Ok(hello(&facts));
                    }
                }
                Some(_) => {}
                None => self.exchange().await?,
            }
        }
    }
}

/// Returns a number that cannot be guessed, and is different each time.
fn nonce() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn hello(facts: &Facts) -> Hello {
    let since = Duration::from_nanos(u64::try_from(facts.clock).unwrap_or_default());
    Hello {
        boot_id: printable(&facts.boot_id),
        instance_id: facts.instance_id.as_deref().map(printable),
        os: printable(&facts.os),
        os_id: printable(&facts.os_id),
        kernel: printable(&facts.kernel),
        arch: printable(&facts.arch),
        clock: SystemTime::UNIX_EPOCH + since,
        systemd: facts.systemd,
    }
}
