//! Known obstacles that keep cloud-init from starting kiln's agent at a guest's next boot, and the step that introduced
//! each.

use crate::plan::Plan;
use crate::wire::cloud_init::SeedObstacle;

use super::step_error::step_title;

/// The known obstacles to the agent's start at the guest's next boot.
#[derive(Debug, Default)]
pub(crate) struct KnownObstacles(Vec<KnownObstacle>);

#[derive(Debug, Clone)]
pub(crate) struct KnownObstacle {
    pub(crate) obstacle: SeedObstacle,
    /// Index of the step that introduced the obstacle; `None` for a step that came from the cache.
    since: Option<usize>,
}

impl KnownObstacles {
    /// Records the obstacles that a guest has now, and returns those that it did not have before.
    pub(crate) fn update(&mut self, found: Vec<SeedObstacle>, since: Option<usize>) -> Vec<KnownObstacle> {
        let before = std::mem::take(&mut self.0);
        let mut new = Vec::new();
        for obstacle in found {
            let known = before.iter().find(|known| known.obstacle == obstacle).cloned();
            let one = known.unwrap_or_else(|| {
                let one = KnownObstacle { obstacle, since };
                new.push(one.clone());
                one
            });
            self.0.push(one);
        }
        new
    }

    /// Explains why the agent would not start after the next boot, of the same guest or of a clone as a new machine;
    /// returns `None` if it would.
    pub(crate) fn explain(&self, plan: &Plan, boot: NextBoot) -> Option<String> {
        let preventing = self.0.iter().filter(|known| boot == NextBoot::Same || known.obstacle.is_lasting);
        let reasons: Vec<String> = preventing.map(|known| known.describe(plan)).collect();
        (!reasons.is_empty()).then(|| reasons.join(", and "))
    }
}

impl KnownObstacle {
    pub(crate) fn describe(&self, plan: &Plan) -> String {
        let reason = &self.obstacle.reason;
        match self.since.and_then(|index| step_title(plan, index)) {
            Some(step) => format!("{reason} (since {step})"),
            None => reason.clone(),
        }
    }
}

/// The kind of the guest's next boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextBoot {
    /// A boot of the same machine.
    Same,
    /// The first boot of a clone.
    Clone,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i1_only_what_is_new_is_warned_of_and_what_is_gone_is_forgotten() {
        let obstacle = |reason: &str, is_lasting| SeedObstacle { reason: reason.into(), is_lasting };
        let (purged, disabled) = (obstacle("purged", true), obstacle("disabled", false));
        let mut known = KnownObstacles::default();
        assert_eq!(known.update(vec![purged.clone()], Some(2)).len(), 1);
        let new = known.update(vec![purged.clone(), disabled.clone()], Some(3));
        assert_eq!(new.iter().map(|one| one.obstacle.clone()).collect::<Vec<_>>(), [disabled]);
        assert_eq!(known.0.iter().map(|one| one.since).collect::<Vec<_>>(), [Some(2), Some(3)]);
        assert!(known.update(Vec::new(), Some(4)).is_empty() && known.0.is_empty());
        assert_eq!(known.update(vec![purged], Some(5))[0].since, Some(5));
    }
}
