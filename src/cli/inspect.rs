//! `kiln inspect IMAGE`: prints what a version is and how it was built.

use std::io::Write;

use clap::Args;

use super::{CommandContext, print, print_json};
use crate::error::Failure;
use crate::output::export::disk_sha256;
use crate::report::quote::TextPage;
use crate::size::ByteSize;
use crate::store::manifest::{Manifest, ManifestOutput, ManifestStep, ManifestTest};
use crate::store::{Artifact, Reference, Store};

/// Arguments of `kiln inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln inspect web@1.4.0 --json | jq .packages")]
pub struct InspectArgs {
    /// Image: `name`, `name@version` or `name@tag`
    pub image: String,
    /// Print the manifest itself, which is JSON
    #[arg(long)]
    pub json: bool,
    /// Print the SHA-256 of the raw disk alone: computed, where the manifest does not have it
    #[arg(long, conflicts_with = "json")]
    pub disk_sha256: bool,
}

/// Writes a summary of a version, or its manifest.
pub fn run(store: &Store, image: &Reference, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let artifact = store.artifact(image)?;
    if json { print_json(out, &artifact.manifest().to_json()) } else { print(out, &summary(&artifact)) }
}

/// Writes the SHA-256 of a version's disk.
pub(super) async fn run_digest(image: &str, context: CommandContext<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    let artifact = context.folders.store()?.artifact(&image.parse()?)?;
    let digest = disk_sha256(&artifact, context.cancel).await?;
    print(out, &format!("{digest}\n"))
}

/// Lines of `label  value` and lists. The values come from specs and guests.
#[derive(Default)]
struct SummaryPage(TextPage);

impl SummaryPage {
    fn line(&mut self, label: &'static str, value: &str) {
        if !value.is_empty() {
            self.0.line(label, &format!("{:width$}{value}", "", width = 14_usize.saturating_sub(label.len())));
        }
    }

    fn list<T>(&mut self, title: &'static str, items: &[T], describe: impl Fn(&T) -> String) {
        if items.is_empty() {
            return;
        }
        self.0.line(title, "");
        for item in items {
            self.0.line("  - ", &describe(item));
        }
    }
}

fn summary(artifact: &Artifact) -> String {
    let manifest = artifact.manifest();
    let mut page = SummaryPage::default();
    page.line("image", &artifact.id().to_string());
    page.line("description", &manifest.image.description);
    for (key, value) in &manifest.image.labels {
        page.line("label", &format!("{key} = {value}"));
    }
    page.line("folder", &artifact.folder().display().to_string());
    page.line("built", &built(manifest));
    page.line("base", &format!("{} ({}, sha256 {})", manifest.base.source, manifest.base.format, manifest.base.sha256));
    page.line("machine", &machine(manifest));
    page.line("build key", &manifest.build_key);
    let digests = [
        ("disk sha256", manifest.disk_sha256),
        ("disk chunks", manifest.disk_chunks_sha256),
        ("content", manifest.content_sha256),
    ];
    for (name, digest) in digests {
        page.line(name, &digest.map(|digest| digest.to_string()).unwrap_or_default());
    }
    if !manifest.packages.is_empty() {
        page.line("packages", &manifest.packages.len().to_string());
    }
    let missing: Vec<&str> = manifest.missing().collect();
    page.list("incomplete contents", &missing, |sentence| (*sentence).to_owned());
    page.list("outputs", &manifest.outputs, output);
    page.list("steps", &manifest.steps, step);
    page.list("tests", &manifest.tests, test);
    page.list("fetched", &manifest.fetched, |file| format!("{}  {}", file.file, ByteSize(file.bytes)));
    page.0.into_text()
}

fn built(manifest: &Manifest) -> String {
    let seconds = manifest.finished.duration_since(manifest.started).as_secs();
    let at = manifest.finished.strftime("%Y-%m-%d %H:%M:%S UTC");
    format!("{at}, in {seconds}s, by kiln {}", manifest.kiln)
}

fn machine(manifest: &Manifest) -> String {
    let m = &manifest.machine;
    let why = if m.accel_reason.is_empty() { String::new() } else { format!(" ({})", m.accel_reason) };
    let start = m.boot.as_ref().map_or_else(|| m.firmware.clone(), |boot| format!("{boot} boot"));
    let agent = m.agent.as_ref().map_or_else(String::new, |agent| format!(", {agent} agent"));
    format!("{}{why}, QEMU {}, {start}{agent}, {} cpus, {}", m.accel, m.qemu, m.cpus, ByteSize(m.memory))
}

fn output(output: &ManifestOutput) -> String {
    let bytes = ByteSize(output.bytes);
    let size = ByteSize(output.virtual_bytes);
    format!("{}  {}  {bytes}, disk {size}  sha256 {}", output.file, output.format, output.sha256)
}

fn step(step: &ManifestStep) -> String {
    let how = if step.cached { "cached".to_owned() } else { format!("{:.1}s", step.seconds) };
    format!("{} ({})  {how}", step.name, step.verb)
}

fn test(test: &ManifestTest) -> String {
    if test.skipped {
        return format!("NOT RUN {} (--no-test)", test.name);
    }
    format!("{} {}  {:.1}s", if test.ok { "ok" } else { "FAILED" }, test.name, test.seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Sha256Digest;
    use crate::store::manifest::ListedContents;
    use crate::store::testing::{TestStore, written};

    #[test]
    fn a_summary_tells_the_story() {
        let shelf = TestStore::with(&["web@1"]);
        let text = written(|out| run(&shelf.store, &"web".parse().unwrap(), false, out)).unwrap();
        let sha256 = shelf.store.artifact(&"web".parse().unwrap()).unwrap().manifest().outputs[0].sha256;
        let expected = format!(
            "image         web@1
folder        {}/web/1
built         2026-01-02 03:05:05 UTC, in 60s, by kiln 0.1.0
base          debian-12.qcow2 (qcow2, sha256 {})
machine       tcg, QEMU 10.0.2, bios, 2 cpus, 1GiB
build key     disk
disk sha256   {}
disk chunks   {}
outputs
  - web-1.qcow2  qcow2  4B, disk 8GiB  sha256 {sha256}
steps
  - install (run)  1.5s
",
            shelf.store.path().display(),
            Sha256Digest::of("debian-12.qcow2"),
            Sha256Digest::of("disk"),
            Sha256Digest::of("chunks"),
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_summary_names_what_the_lists_of_contents_lack() {
        let shelf = TestStore::with(&["web@1"]);
        let missing = "/srv is xfs on partition 3, which kiln cannot read";
        let mut manifest = shelf.store.artifact(&"web".parse().unwrap()).unwrap().manifest().clone();
        manifest.contents = Some(ListedContents { missing: vec![missing.into()], ..ListedContents::default() });
        shelf.overwrite("web/1/manifest.json", &manifest.to_json());
        let text = written(|out| run(&shelf.store, &"web@1".parse().unwrap(), false, out)).unwrap();
        assert!(text.contains(&format!("incomplete contents\n  - {missing}\n")), "{text}");
    }

    #[test]
    fn json_is_the_manifest_to_the_byte() {
        let shelf = TestStore::with(&["web@1"]);
        let text = written(|out| run(&shelf.store, &"web@1".parse().unwrap(), true, out)).unwrap();
        assert_eq!(text, std::fs::read_to_string(shelf.store.path().join("web/1/manifest.json")).unwrap());
    }

    #[test]
    fn an_unknown_image_is_exit_8() {
        let shelf = TestStore::with(&["web@1"]);
        let failure = written(|out| run(&shelf.store, &"wob".parse().unwrap(), false, out)).unwrap_err();
        assert_eq!(failure.kind().exit_code(), 8);
        assert_eq!(failure.hints(), ["did you mean `web`?", "images there are: web"]);
    }

    #[test]
    fn text_from_elsewhere_is_escaped() {
        let mut page = SummaryPage::default();
        page.line("description", "\x1b[2J");
        page.list("steps", &["a\rb"], |text| (*text).to_owned());
        assert_eq!(page.0.into_text(), "description   \\x1b[2J\nsteps\n  - a\\rb\n");
    }
}
