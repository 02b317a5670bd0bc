//! `kiln verify IMAGE`: recomputes every checksum, and checks the signature.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::print;
use crate::disk::chunk_index;
use crate::disk::listing::{self, ListingError};
use crate::error::Failure;
use crate::progress::Progress;
use crate::report::escape::escape;
use crate::sign::{SignatureTrust, Tool};
use crate::store::{Artifact, Store, VerifyReport};

/// Arguments of `kiln verify`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln verify web --key release.pub\n  kiln verify web@1.4.0 --allowed-signers \
        .ssh/allowed_signers")]
pub struct VerifyArgs {
    /// Image: `name`, `name@version` or `name@tag`
    pub image: String,
    /// Require a signature by this public key, of OpenSSH or minisign
    #[arg(long, value_name = "PUB", conflicts_with = "allowed_signers")]
    pub key: Option<PathBuf>,
    /// Require a signature by a signer in this file of OpenSSH: see ALLOWED SIGNERS in ssh-keygen(1)
    #[arg(long, value_name = "FILE")]
    pub allowed_signers: Option<PathBuf>,
}

/// Writes an `ok` line for the signature, if a key or a list of signers was given, and for each intact file.
///
/// # Errors
/// When the signature does not hold; when anything is damaged, after the lines of what is sound; when there is no such
/// version.
pub fn run(store: &Store, args: &VerifyArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let artifact = store.artifact(&args.image.parse()?)?;
    // Before the files: a wrong checksum in SHA256SUMS would otherwise be reported as damage of the file.
    match (&args.key, &args.allowed_signers) {
        (Some(key), _) => checked(&artifact, &SignatureTrust::Key(key.clone()), out)?,
        (None, Some(signers)) => checked(&artifact, &SignatureTrust::AllowedSigners(signers.clone()), out)?,
        (None, None) => unchecked(&artifact)?,
    }
    let mut verdict = artifact.verify(&Progress::unwatched())?;
    for (file, damage) in
        [(listing::FILE, check_list(&artifact, &verdict)), (chunk_index::FILE, check_chunks(&artifact, &verdict))]
    {
        if let Some(damage) = damage {
            verdict.sound.remove(file);
            verdict.damage.push(damage);
        }
    }
    for file in verdict.sound.keys() {
        print(out, &format!("ok {}\n", escape(file)))?;
    }
    Ok(verdict.into_result()?)
}

fn checked(artifact: &Artifact, trust: &SignatureTrust, out: &mut dyn Write) -> Result<(), Failure> {
    let signer = artifact.check_signature(trust)?;
    print(out, &format!("ok {}, signed by {}\n", trust.tool()?.file(), escape(&signer)))
}

/// Returns the damage of the list of files, whose digest is in the manifest as well as in `SHA256SUMS`.
fn check_list(artifact: &Artifact, verdict: &VerifyReport) -> Option<String> {
    let expected = artifact.manifest().content_sha256?;
    verdict.sound.get(listing::FILE)?;
    let file = File::open(artifact.folder().join(listing::FILE)).map_err(ListingError::from);
    match file.and_then(listing::content_digest) {
        Ok(found) if found == expected => None,
        Ok(_) => Some(format!("{} and the content_sha256 of manifest.json disagree", listing::FILE)),
        Err(error) => Some(format!("{} cannot be read as a list of files: {error}", listing::FILE)),
    }
}

/// Returns the damage of the digests of the disk's chunks, whose own digest is in the manifest as well as in `SHA256SUMS`.
fn check_chunks(artifact: &Artifact, verdict: &VerifyReport) -> Option<String> {
    let expected = artifact.manifest().disk_chunks_sha256.as_ref()?;
    let found = verdict.sound.get(chunk_index::FILE)?;
    let disagree = || format!("{} and the disk_chunks_sha256 of manifest.json disagree", chunk_index::FILE);
    (found.sha256 != *expected).then(disagree)
}

/// Prints a note for each signature that was not checked, so that it does not seem to prove anything.
fn unchecked(artifact: &Artifact) -> Result<(), Failure> {
    for tool in Tool::ALL {
        if artifact.signature(tool)?.is_some() {
            eprintln!("note: {} is not checked: say who may have signed, with --key or --allowed-signers", tool.file());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Sha256Digest;
    use crate::disk::chunk_index::ChunkIndex;
    use crate::disk::entry::ContentDigest;
    use crate::disk::listing::ListingWriter;
    use crate::sign::Signer;
    use crate::sign::tests::ssh_key;
    use crate::store::manifest::tests::sample;
    use crate::store::testing::{TestStore, written};
    use crate::store::{Evidence, ImageId, Lookup, Manifest};
    use std::path::Path;

    fn verify(key: Option<&Path>) -> VerifyArgs {
        VerifyArgs { image: "web@1".into(), key: key.map(Path::to_owned), allowed_signers: None }
    }

    #[test]
    fn each_sound_file_has_a_line() {
        let shelf = TestStore::with(&["web@1"]);
        let text = written(|out| run(&shelf.store, &verify(None), out)).unwrap();
        assert_eq!(text, "ok manifest.json\nok web-1.qcow2\n");
    }

    #[test]
    fn a_damaged_file_is_named_after_the_sound_ones() {
        let shelf = TestStore::with(&["web@1"]);
        shelf.overwrite("web/1/web-1.qcow2", "dosk");
        let mut out = Vec::new();
        let failure = run(&shelf.store, &verify(None), &mut out).unwrap_err();
        assert_eq!(String::from_utf8(out).unwrap(), "ok manifest.json\n");
        assert_eq!(failure.to_string(), "web@1 is damaged: web-1.qcow2 differs from its checksum");
        assert_eq!(failure.kind().exit_code(), 8);
    }

    /// Publishes a version with an image and another file.
    fn publish(store: &Store, file: &str, content: &[u8], manifest: Manifest) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let id = ImageId::new("web", "1").unwrap();
        let Lookup::Vacant(lock) = runtime.block_on(store.claim(&id, |_| {})).unwrap() else { panic!("{id} exists") };
        let staging = lock.stage().unwrap();
        std::fs::write(staging.path().join(file), content).unwrap();
        std::fs::write(staging.path().join("web-1.qcow2"), "disk").unwrap();
        drop(staging.finish(manifest, &Evidence::default(), &Progress::unwatched()).unwrap());
    }

    #[test]
    fn the_list_of_files_is_compared_with_the_digest_in_the_manifest() {
        let sound = ContentDigest::new().finish();
        for (digest, is_sound) in [(sound, true), (Sha256Digest::new([0; 32]), false)] {
            let shelf = TestStore::with(&[]);
            let list = ListingWriter::new(Vec::new()).and_then(ListingWriter::finish).unwrap();
            let manifest = Manifest { content_sha256: Some(digest), ..sample("web", "1", "disk") };
            publish(&shelf.store, listing::FILE, &list, manifest);
            let mut out = Vec::new();
            let verified = run(&shelf.store, &verify(None), &mut out);
            assert_eq!(String::from_utf8(out).unwrap().contains("ok files.zst"), is_sound);
            let error = verified.err().map(|failure| failure.to_string());
            let expected = "web@1 is damaged: files.zst and the content_sha256 of manifest.json disagree";
            assert_eq!(error, (!is_sound).then(|| expected.to_owned()));
        }
    }

    #[test]
    fn the_digests_of_chunks_are_compared_with_the_digest_in_the_manifest() {
        let index = ChunkIndex::new(8 << 30);
        for (digest, is_sound) in [(index.sha256(), true), (Sha256Digest::new([0; 32]), false)] {
            let shelf = TestStore::with(&[]);
            let manifest = Manifest { disk_chunks_sha256: Some(digest), ..sample("web", "1", "disk") };
            publish(&shelf.store, chunk_index::FILE, index.to_text().as_bytes(), manifest);
            let mut out = Vec::new();
            let verified = run(&shelf.store, &verify(None), &mut out);
            assert_eq!(String::from_utf8(out).unwrap().contains("ok disk.chunks"), is_sound);
            let error = verified.err().map(|failure| failure.to_string());
            let expected = "web@1 is damaged: disk.chunks and the disk_chunks_sha256 of manifest.json disagree";
            assert_eq!(error, (!is_sound).then(|| expected.to_owned()));
        }
    }

    #[test]
    fn a_signature_is_checked_for_who_names_the_key() {
        let shelf = TestStore::with(&["web@1"]);
        let folder = tempfile::tempdir().unwrap();
        let key = ssh_key(folder.path(), "one");
        let public = key.with_extension("pub");
        let unsigned = written(|out| run(&shelf.store, &verify(Some(&public)), out)).unwrap_err();
        assert_eq!((unsigned.kind().exit_code(), unsigned.to_string()), (8, "SHA256SUMS.sig is missing".into()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let id = ImageId::new("web", "1").unwrap();
        let Lookup::Exists(existing) = runtime.block_on(shelf.store.claim(&id, |_| {})).unwrap() else {
            panic!("gone")
        };
        existing.sign(&Signer::open(&key).unwrap()).unwrap();
        let text = written(|out| run(&shelf.store, &verify(Some(&public)), out)).unwrap();
        let signed = format!("ok SHA256SUMS.sig, signed by {}\n", public.display());
        assert_eq!(text, signed + "ok manifest.json\nok web-1.qcow2\n");
        // Without a key the files are checked alone.
        written(|out| run(&shelf.store, &verify(None), out)).unwrap();
        shelf.overwrite("web/1/SHA256SUMS", "");
        let failure = written(|out| run(&shelf.store, &verify(Some(&public)), out)).unwrap_err();
        assert!(failure.to_string().starts_with("SHA256SUMS.sig does not hold"), "{failure}");
    }
}
