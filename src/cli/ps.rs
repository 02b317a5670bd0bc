//! `kiln ps`: lists the machines that run.

use std::io::Write;
use std::path::Path;

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::error::Failure;
use crate::machine_registry::{CONSOLE, ListedMachine, MachineMode, MachineRecord, list};

use super::list::{age, align};
use super::{print, print_json};

/// Arguments of `kiln ps`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln ps\n  kiln ps --json | jq -r '.[].id'\n\n\
        Machines are known by the cache that they were started with (--cache). Those whose kiln has died are \
        removed.")]
pub struct PsArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Writes the machines of a cache, by their ids.
pub fn run(cache: &Path, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let machines = list(cache)?;
    if json {
        let entries: Vec<Value> = machines.iter().map(entry).collect();
        return print_json(out, &format!("{:#}\n", json!(entries)));
    }
    print(out, &table(&machines, Timestamp::now()))
}

fn entry(machine: &ListedMachine) -> Value {
    let MachineRecord { image, ports, ssh, started, pid, mode, stalled, .. } = &machine.record;
    let console = (*mode == MachineMode::Detached).then(|| machine.folder.join(CONSOLE).display().to_string());
    json!({
        "id": machine.id, "image": image, "ports": ports, "ssh": ssh, "started": started, "pid": pid,
        "mode": mode.name(), "state": state(&machine.record), "stalled": stalled, "console": console,
    })
}

/// Returns the word for the state of a machine.
fn state(record: &MachineRecord) -> &'static str {
    if record.stalled.is_some() { "stalled" } else { "running" }
}

fn table(machines: &[ListedMachine], now: Timestamp) -> String {
    let head = ["ID", "IMAGE", "PORTS", "STARTED", "PID", "STATE"].map(str::to_owned);
    let rows = machines.iter().map(|machine| {
        let record = &machine.record;
        let started = record.started.parse::<Timestamp>();
        let started = started.map_or_else(|_| record.started.clone(), |then| age(now.duration_since(then).as_secs()));
        let reason = record.stalled.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let state = format!("{} ({}){reason}", state(record), record.mode.name());
        [machine.id.clone(), record.image.clone(), record.ports.join(", "), started, record.pid.to_string(), state]
    });
    align(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine_registry::MachineFolder;
    use crate::store::testing::written;

    #[test]
    fn machines_are_listed_with_all_that_is_known() {
        let cache = tempfile::tempdir().unwrap();
        let folder = MachineFolder::create(cache.path(), "web").unwrap();
        let record = MachineRecord {
            image: "web@1".into(),
            image_folder: "/store/web/1".into(),
            ports: vec!["127.0.0.1:8080->80/tcp".into()],
            ssh: None,
            started: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            pid: 4711,
            mode: MachineMode::Detached,
            stalled: None,
        };
        folder.write(&record).unwrap();
        let text = written(|out| run(cache.path(), false, out)).unwrap();
        let expected = "ID     IMAGE  PORTS                   STARTED   PID   STATE\n\
                        web-1  web@1  127.0.0.1:8080->80/tcp  just now  4711  running (detached)\n";
        assert_eq!(text, expected);
        folder.write(&MachineRecord { stalled: Some("the guest's kernel panicked".into()), ..record }).unwrap();
        let json: Value = serde_json::from_str(&written(|out| run(cache.path(), true, out)).unwrap()).unwrap();
        assert_eq!(json[0]["state"], "stalled");
        assert_eq!((json[0]["id"].as_str(), json[0]["pid"].as_i64()), (Some("web-1"), Some(4711)));
        assert!(json[0]["console"].as_str().unwrap().ends_with("web-1/console.log"));
        drop(folder);
        assert_eq!(written(|out| run(cache.path(), true, out)).unwrap(), "[]\n");
    }
}
