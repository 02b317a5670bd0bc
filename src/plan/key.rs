//! Keys: digests over everything that can influence a result, chained from the base image to the finished image.
//!
//! A key is `sha256(parent key, canonical JSON)`. The JSON has sorted keys and holds content digests, never paths of
//! the checkout nor times, so that the same inputs give the same key on every machine. A secret enters by its name
//! alone: a digest of a short secret could be guessed from a published manifest.

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::digest::Sha256Digest;
use crate::specfile::{self, Action, AgentChoice, Command, Context, Copy, FileOwner, NetworkBackend, Spec};

use super::agent::AgentStart;
use super::machine::{Accelerator, PlannedMachine, format_name};
use super::{Facts, InputFacts, PlannedStep};

/// The version of the hashed form; it changes whenever the meaning of that form changes.
pub(super) const SCHEME: &str = "kiln-key-3";

/// A digest that identifies a result by everything that influenced it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey(Sha256Digest);

impl CacheKey {
    /// Returns the key that every chain of keys begins with.
    #[must_use]
    pub fn root() -> Self {
        Self(Sha256Digest::of(SCHEME))
    }

    /// Returns the key of what results from this one by doing what `content` describes.
    #[must_use]
    pub fn then(self, content: &Value) -> Self {
        // serde_json's map is sorted, so the string is canonical.
        let hasher = Sha256::new_with_prefix(self.0.as_bytes()).chain_update(content.to_string());
        Self(hasher.into())
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

impl Serialize for CacheKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Returns a step in the canonical form that its key hashes. `input` is the digest of what the step brings from the host.
#[must_use]
pub fn canonical(action: &Action, input: Option<Sha256Digest>) -> Value {
    match action {
        Action::Run { command, context } => json!({ "run": command_value(command), "context": context_value(context) }),
        Action::Script { args, context, .. } => {
            json!({ "script": input, "args": args, "context": context_value(context) })
        }
        // What is left out is not part of the digest, and nothing else depends on the patterns.
        Action::Copy(Copy { from, contents, to, into, owner, mode, exclude: _ }) => json!({
            "copy": input, "to": to, "owner": owner_value(owner), "mode": mode,
            // What is copied into a folder keeps its name there, unless only a folder's contents are copied. Nothing else
            // depends on the name.
            "name": (*into && !contents).then(|| from.file_name().map(|name| name.to_string_lossy())).flatten(),
            "contents": contents, "into": into,
        }),
        Action::Write { content, to, owner, mode } => {
            json!({ "write": content, "to": to, "owner": owner_value(owner), "mode": mode })
        }
        Action::Fetch { from, to } => json!({ "fetch": from, "to": to }),
        Action::Reboot => json!("reboot"),
    }
}

/// Returns a command in canonical form: a string for a shell and an argument vector never look alike.
#[must_use]
pub fn command_value(command: &Command) -> Value {
    match command {
        Command::Shell(text) => json!({ "shell": text }),
        Command::Argv(argv) => json!({ "argv": argv }),
    }
}

fn context_value(context: &Context) -> Value {
    json!({ "env": context.env, "user": context.user, "dir": context.dir, "secrets": context.secrets })
}

fn owner_value(owner: &FileOwner) -> Value {
    json!([owner.user, owner.group])
}

/// Returns the content of the base key: everything that the spec determines about the guest before the first step, and
/// everything about this host's machine that a step can see.
pub(super) fn base_content(spec: &Spec, facts: &Facts, machine: &PlannedMachine) -> Value {
    let mut content = portable_content(spec, facts, machine);
    content["host"] = json!({
        "cpus": machine.cpus, "type": machine.machine_type, "processor": processor(facts, machine.accelerator),
        "uefi": facts.firmware.as_ref().map(|firmware| json!([firmware.code, firmware.vars])),
    });
    content
}

/// Returns the part of the base key's content that is the same on every host.
fn portable_content(spec: &Spec, facts: &Facts, machine: &PlannedMachine) -> Value {
    let network = match spec.machine.network {
        NetworkBackend::None => json!(false),
        NetworkBackend::Locked => json!("locked"),
        NetworkBackend::User => json!("filtered"),
    };
    let mut content = json!({
        "agent": facts.agent_build,
        "base": { "sha256": facts.base.sha256, "format": format_name(facts.base.format) },
        "machine": {
            "cpus": spec.machine.cpus, "memory": spec.machine.memory, "disk": spec.machine.disk,
            "firmware": machine.firmware.name(), "network": network,
        },
        "source_date_epoch": facts.source_date_epoch,
    });
    match machine.agent {
        // It refuses a reboot for which `auto` plants the agent.
        AgentStart::CloudInit if spec.machine.agent == AgentChoice::CloudInit => {
            content["machine"]["agent"] = json!("cloud-init");
        }
        // Its keys are those of versions without other starts.
        AgentStart::CloudInit => {}
        AgentStart::Planted(_) => content["machine"]["agent"] = json!("planted"),
        AgentStart::Direct => content["machine"]["boot"] = json!("direct"),
    }
    if let Some(kernel) = &facts.base.kernel {
        let initrd = kernel.initrd.as_ref().map(|initrd| initrd.sha256);
        content["kernel"] = json!({ "image": kernel.image.sha256, "initrd": initrd, "cmdline": kernel.cmdline });
    }
    if !spec.network.private.is_empty() {
        content["network"] = json!({ "private": spec.network.private });
    }
    content
}

/// What the key of a version depends on besides the steps.
#[derive(Debug, Clone)]
pub(super) struct VersionInputs {
    /// The key before the first step.
    base: CacheKey,
    /// What is done after the last step.
    result: Value,
}

impl VersionInputs {
    pub(super) fn new(spec: &Spec, facts: &Facts, machine: &PlannedMachine) -> Self {
        let base = CacheKey::root().then(&portable_content(spec, facts, machine));
        Self { base, result: result_value(spec, facts) }
    }

    /// Returns the key of a version. It depends on the inputs alone: the cache also requires the same machine, but a version
    /// that was built from these inputs on another host is the same version.
    pub(super) fn build_key(&self, spec: &Spec, steps: &[PlannedStep]) -> CacheKey {
        let last = steps.iter().fold(self.base, |key, planned| {
            key.then(&step_content(spec, &planned.step, planned.input.as_ref(), planned.downloads))
        });
        last.then(&self.result)
    }
}

/// Returns the name of the processor that the guest sees. Programs are compiled for it (`-march=native`) and select code by
/// it.
fn processor(facts: &Facts, accelerator: Accelerator) -> String {
    let model = accelerator.cpu_model();
    match accelerator {
        // The host's own processor.
        Accelerator::Kvm => format!("{model} {}", facts.host.processor),
        // Everything that this QEMU can emulate, whatever the host has; the machine type identifies the QEMU.
        Accelerator::Tcg => model.to_owned(),
    }
}

/// Returns what a step adds to the key before it. `downloads` is the digest of what it gets over a locked network.
pub(super) fn step_content(
    spec: &Spec,
    step: &specfile::StepSpec,
    input: Option<&InputFacts>,
    downloads: Option<Sha256Digest>,
) -> Value {
    let mut content = json!({ "do": canonical(&step.action, input.map(|input| input.digest.sha256())) });
    // Only commands see the variables; strings that contained them have changed already.
    if step.action.is_command() {
        content["vars"] = json!(spec.vars);
    }
    if let Some(downloads) = downloads {
        content["downloads"] = json!(downloads);
        // A step may do something else where a host is refused.
        content["allow"] = json!(spec.network.allow);
    }
    content
}

/// Returns what is done after the last step, and what the manifest records of the image.
fn result_value(spec: &Spec, facts: &Facts) -> Value {
    let tests = spec.tests.iter().map(|test| json!([test.name, test.check, test.reboot, test.needs_fresh_boot]));
    let outputs = spec.outputs.iter().map(|output| json!([output.format.name(), output.compression.name()]));
    json!({
        "image": {
            "name": spec.image.name, "version": spec.image.version,
            "description": spec.image.description, "labels": spec.image.labels,
        },
        "seal": { "build": facts.seal_build, "skip": spec.seal.skip },
        "tests": tests.collect::<Vec<_>>(),
        "outputs": outputs.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_object_keys_does_not_matter() {
        let one: Value = serde_json::from_str(r#"{"a": 1, "b": [2]}"#).unwrap();
        let other: Value = serde_json::from_str(r#"{"b": [2], "a": 1}"#).unwrap();
        assert_eq!(CacheKey::root().then(&one), CacheKey::root().then(&other));
    }

    #[test]
    fn neighbours_do_not_run_together() {
        let key = |values: &[&str]| values.iter().fold(CacheKey::root(), |key, value| key.then(&json!(value)));
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_ne!(key(&["a"]), key(&["a", ""]));
    }

    #[test]
    fn shell_text_and_argv_differ() {
        let argv = Command::Argv(vec!["true".into()]);
        assert_ne!(command_value(&Command::Shell("true".into())), command_value(&argv));
    }
}
