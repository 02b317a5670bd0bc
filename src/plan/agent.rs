//! The decision what starts kiln's agent in a guest.

use std::fmt;

use crate::specfile::{AgentChoice, BootMode};

/// What starts kiln's agent in a guest, and so how the guest boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentStart {
    /// The guest's cloud-init, from a seed, in a full boot.
    CloudInit,
    /// The guest's init, in a full boot. A direct boot has planted the agent on the disk before.
    Planted(PlantingReason),
    /// The kernel, in a direct boot: the agent is the first process.
    Direct,
}

/// The reason why the agent is planted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlantingReason {
    /// The user asks for it.
    Requested,
    /// cloud-init does not start the agent, for this reason.
    Obstacle(String),
}

impl AgentStart {
    /// Decides what starts the agent in a guest whose cloud-init does not start it because of this obstacle, if there is one.
    ///
    /// # Errors
    /// The obstacle, where the user asks for cloud-init.
    pub fn choose(choice: AgentChoice, obstacle: Option<String>) -> Result<Self, String> {
        match (choice, obstacle) {
            (AgentChoice::Planted, _) => Ok(Self::Planted(PlantingReason::Requested)),
            (AgentChoice::Auto, Some(why)) => Ok(Self::Planted(PlantingReason::Obstacle(why))),
            (AgentChoice::CloudInit, Some(why)) => Err(why),
            (AgentChoice::Auto | AgentChoice::CloudInit, None) => Ok(Self::CloudInit),
        }
    }

    /// Decides what starts the agent in the guest of a build. A direct boot needs nothing on the disk.
    ///
    /// # Errors
    /// As [`AgentStart::choose`].
    pub fn choose_for_build(boot: BootMode, choice: AgentChoice, obstacle: Option<String>) -> Result<Self, String> {
        match boot {
            BootMode::Direct => Ok(Self::Direct),
            BootMode::Full => Self::choose(choice, obstacle),
        }
    }

    /// Returns the name that `kiln plan` and the manifest use.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::CloudInit => "cloud-init",
            Self::Planted(_) => "planted",
            Self::Direct => "direct",
        }
    }
}

/// When the agent was planted on the disk of a build, as the manifest records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordedPlanting {
    /// Before the first boot of the guest.
    BeforeBoot,
    /// Before a reboot: an earlier step had disabled or removed cloud-init.
    BeforeReboot,
}

impl RecordedPlanting {
    const ALL: [Self; 2] = [Self::BeforeBoot, Self::BeforeReboot];

    /// Returns the record of a build with this start of the agent. `had_agent` says whether the disk had an agent at its end.
    #[must_use]
    pub fn of_build(start: &AgentStart, had_agent: bool) -> Option<Self> {
        match start {
            AgentStart::Planted(_) => Some(Self::BeforeBoot),
            AgentStart::CloudInit if had_agent => Some(Self::BeforeReboot),
            AgentStart::CloudInit | AgentStart::Direct => None,
        }
    }

    /// Returns the name in manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BeforeBoot => "planted",
            Self::BeforeReboot => "planted-later",
        }
    }

    /// Returns the record with this name in manifests.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|planting| planting.name() == name)
    }

    /// Returns the choice with which an image of this record is tested again.
    #[must_use]
    pub const fn choice(self) -> AgentChoice {
        match self {
            Self::BeforeBoot => AgentChoice::Planted,
            // Its tests depend on what the last step has left of cloud-init, as in the build.
            Self::BeforeReboot => AgentChoice::Auto,
        }
    }
}

impl fmt::Display for PlantingReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requested => "the spec asks for it",
            Self::Obstacle(why) => why,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i1_the_agent_is_planted_where_cloud_init_does_not_start_it() {
        let obstacle = || Some("cloud-init is not installed".to_owned());
        let planted = AgentStart::Planted(PlantingReason::Obstacle("cloud-init is not installed".into()));
        assert_eq!(AgentStart::choose(AgentChoice::Auto, None), Ok(AgentStart::CloudInit));
        assert_eq!(AgentStart::choose(AgentChoice::Auto, obstacle()), Ok(planted));
        assert_eq!(AgentStart::choose(AgentChoice::CloudInit, None), Ok(AgentStart::CloudInit));
        assert_eq!(AgentStart::choose(AgentChoice::CloudInit, obstacle()), Err("cloud-init is not installed".into()));
        let requested = AgentStart::Planted(PlantingReason::Requested);
        assert_eq!(AgentStart::choose(AgentChoice::Planted, None), Ok(requested));
        let direct = AgentStart::choose_for_build(BootMode::Direct, AgentChoice::CloudInit, obstacle());
        assert_eq!(direct, Ok(AgentStart::Direct), "nothing on the disk starts it");
    }

    #[test]
    fn each_planting_has_a_name_of_its_own_in_manifests() {
        let planted = AgentStart::Planted(PlantingReason::Requested);
        for (start, had_agent, name) in [
            (&planted, true, Some("planted")),
            (&AgentStart::CloudInit, true, Some("planted-later")),
            (&AgentStart::CloudInit, false, None),
            (&AgentStart::Direct, true, None),
        ] {
            let record = RecordedPlanting::of_build(start, had_agent);
            assert_eq!(record.map(RecordedPlanting::name), name, "{start:?}");
            assert_eq!(name.and_then(RecordedPlanting::named), record);
        }
        assert_eq!(RecordedPlanting::named("cloud-init"), None);
    }
}
