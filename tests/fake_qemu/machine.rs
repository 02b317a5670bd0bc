//! The monitor's end: a greeting, an answer to each command, events.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::exit;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::Sender;

use serde_json::{Value, json};

/// What QEMU says first, as version 10.0.2 does.
const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian 1:10.0.2+ds-2"}, "capabilities": ["oob"]}}"#;

const MEMORY: &[u8] = b"the memory of a machine that has none";

/// The machine as the monitor shows it.
pub struct Machine {
    monitor: UnixStream,
    /// Files of block nodes, and the nodes' device serials.
    disks: Mutex<Disks>,
    /// How often it still says that it is about to finish a migration that it called completed.
    finishing: AtomicU8,
    /// Half of a memory file, which it could not write to its end.
    half: Mutex<Option<String>>,
    fails_to_save: bool,
    ignores_power_button: bool,
}

#[derive(Default)]
struct Disks {
    files: HashMap<String, String>,
    serials: HashMap<String, String>,
}

impl Machine {
    pub fn new(monitor: UnixStream, mode: &str) -> Self {
        let fails_to_save = mode == "half-a-checkpoint";
        let ignores_power_button = mode == "ignores-power-button";
        Self {
            monitor,
            disks: Mutex::default(),
            finishing: AtomicU8::new(0),
            half: Mutex::default(),
            fails_to_save,
            ignores_power_button,
        }
    }

    /// Greets and answers until kiln is gone. `start` hears when the guest may run.
    pub fn serve_monitor(&self, start: Sender<()>) {
        let mut start = Some(start);
        self.say(GREETING);
        for line in BufReader::new(&self.monitor).lines() {
            let Ok(line) = line else { break };
            let command: Value = serde_json::from_str(&line).expect("kiln sends JSON");
            let name = command["execute"].as_str().unwrap_or_default();
            self.answer(name, &command["arguments"], &command["id"]);
            if let Some(start) = start.take_if(|_| name == "cont") {
                start.send(()).expect("the guest waits for it");
            }
        }
        exit(0);
    }

    fn answer(&self, command: &str, arguments: &Value, id: &Value) {
        let text = |name: &str| arguments[name].as_str().unwrap_or_default().to_owned();
        match command {
            "blockdev-add" => {
                let file = arguments["file"]["filename"].as_str().unwrap_or_default().to_owned();
                self.disks().files.insert(text("node-name"), file);
            }
            "stop" => self.stop(),
            "cont" if self.finishing.load(Ordering::Relaxed) > 0 => {
                super::fail("cont before the migration was over: QEMU would undo it");
            }
            "cont" => self.look_for_half(),
            "device_add" => drop(self.disks().serials.insert(text("serial"), text("drive"))),
            _ => {}
        }
        let returned = if command == "query-status" { self.status() } else { json!({}) };
        self.say(&json!({ "return": returned, "id": id }).to_string());
        match command {
            "device_del" => {
                let path = format!("/machine/peripheral/{}", text("id"));
                self.event("DEVICE_DELETED", &json!({ "device": text("id"), "path": path }));
            }
            "migrate" => self.save(text("uri").trim_start_matches("file:")),
            "migrate-incoming" => self.load(text("uri").trim_start_matches("file:")),
            "system_powerdown" => {
                super::log("power button");
                if !self.ignores_power_button {
                    self.power_off();
                }
            }
            "quit" => {
                self.event("SHUTDOWN", &json!({ "guest": false, "reason": "host-qmp-quit" }));
                exit(0);
            }
            _ => {}
        }
    }

    /// There is no memory to save; a mark stands for it.
    fn save(&self, file: &str) {
        if self.fails_to_save {
            super::log("half a checkpoint");
            std::fs::write(file, &MEMORY[..MEMORY.len() / 2]).expect("there is room for half of it");
            *self.half.lock().expect("no thread panics with it") = Some(file.to_owned());
            return self.migrated("failed");
        }
        let written = std::fs::write(file, MEMORY);
        self.finishing.store(2, Ordering::Relaxed);
        self.migrated(if written.is_ok() { "completed" } else { "failed" });
    }

    fn look_for_half(&self) {
        let half = self.half.lock().expect("no thread panics with it").take();
        if half.is_some_and(|file| std::fs::exists(file).unwrap_or(true)) {
            super::log("goes on beside half a checkpoint");
        }
    }

    fn status(&self) -> Value {
        let finishing = self.finishing.load(Ordering::Relaxed);
        self.finishing.store(finishing.saturating_sub(1), Ordering::Relaxed);
        let status = if finishing > 0 { "finish-migrate" } else { "postmigrate" };
        json!({ "status": status, "running": false, "singlestep": false })
    }

    /// As QEMU does, this one ends when the memory makes no sense.
    fn load(&self, file: &str) {
        if std::fs::read(file).is_ok_and(|memory| memory == MEMORY) {
            super::log("restore");
            return self.migrated("completed");
        }
        self.migrated("failed");
        super::fail("load of migration failed: Invalid argument");
    }

    fn migrated(&self, status: &str) {
        self.event("MIGRATION", &json!({ "status": status }));
    }

    /// The file behind the hot-plugged disk with this serial number.
    pub fn disk(&self, serial: &str) -> Option<String> {
        let disks = self.disks();
        disks.files.get(disks.serials.get(serial)?).cloned()
    }

    /// The guest has turned itself off: the event, then the end.
    pub fn power_off(&self) {
        self.event("SHUTDOWN", &json!({ "guest": true, "reason": "guest-shutdown" }));
        exit(0);
    }

    pub fn panic(&self) {
        self.event("GUEST_PANICKED", &json!({ "action": "pause" }));
        self.stop();
    }

    pub fn disk_full(&self) {
        self.event(
            "BLOCK_IO_ERROR",
            &json!({
                "device": "", "node-name": "disk", "qom-path": "/machine/peripheral-anon/device[3]/virtio-backend",
                "reason": "No space left on device", "operation": "write", "action": "stop", "nospace": true,
            }),
        );
        self.stop();
    }

    pub fn stop(&self) {
        self.send(&json!({ "event": "STOP", "timestamp": { "seconds": 1_700_000_000, "microseconds": 5 } }));
    }

    /// Reports that the agent has opened or closed its port.
    pub fn change_port(&self, is_open: bool) {
        self.event("VSERPORT_CHANGE", &json!({ "id": "agent-port", "open": is_open }));
    }

    pub fn reset(&self) {
        self.event("RESET", &json!({ "guest": true, "reason": "guest-reset" }));
    }

    fn event(&self, name: &str, data: &Value) {
        let timestamp = json!({ "seconds": 1_700_000_000, "microseconds": 5 });
        self.send(&json!({ "event": name, "data": data, "timestamp": timestamp }));
    }

    fn send(&self, message: &Value) {
        self.say(&message.to_string());
    }

    fn say(&self, line: &str) {
        // One write a line: events come from another thread than answers. Kiln may be gone already.
        let _ = (&self.monitor).write_all(format!("{line}\r\n").as_bytes());
    }

    fn disks(&self) -> std::sync::MutexGuard<'_, Disks> {
        self.disks.lock().expect("no thread panics with it")
    }
}
