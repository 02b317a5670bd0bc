//! Tracks whether the agent has its port open in the guest, as QEMU reports it (`VSERPORT_CHANGE`). The kernel of the guest
//! closes the port of an agent that has ended, in whatever way.

use std::time::Duration;

use tokio::time::timeout;

use super::RunningMachine;

/// Id of the port's device.
pub(super) const DEVICE: &str = "agent-port";
/// Time for which a closed port may be the sign of a shutdown, or of an agent that opens it again.
const GRACE: Duration = Duration::from_secs(8);

/// The state of the port as reported by QEMU, which also reports a port that was never open as closed when the machine is
/// reset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum AgentPort {
    #[default]
    NotOpened,
    Open,
    Closed,
}

impl AgentPort {
    /// Returns the state after a change.
    pub(super) fn changed(self, is_open: bool) -> Self {
        match self {
            _ if is_open => Self::Open,
            Self::NotOpened => Self::NotOpened,
            Self::Open | Self::Closed => Self::Closed,
        }
    }
}

impl RunningMachine {
    /// Waits until the agent has closed its port, and has not opened it again for some seconds.
    pub async fn agent_end(&self) {
        let mut life = self.life.subscribe();
        loop {
            if life.wait_for(|life| life.agent_port == AgentPort::Closed).await.is_err() {
                // The sender is gone, and no more changes will be reported.
                std::future::pending::<()>().await;
            }
            if timeout(GRACE, life.wait_for(|life| life.agent_port != AgentPort::Closed)).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_port_that_was_open_is_closed() {
        let after = |changes: &[bool]| changes.iter().fold(AgentPort::default(), |port, open| port.changed(*open));
        assert_eq!(after(&[false]), AgentPort::NotOpened);
        assert_eq!(after(&[false, true]), AgentPort::Open);
        assert_eq!(after(&[true, false]), AgentPort::Closed);
        assert_eq!(after(&[true, false, true]), AgentPort::Open);
    }
}
