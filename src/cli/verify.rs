//! `kiln verify IMAGE`: recomputes every checksum, and checks the signature.

use std::io::Write;

use super::{args, print};
use crate::error::Failure;
use crate::report::escape::escape;
use crate::sign::{Tool, Trust};
use crate::store::{Artifact, Store, UNWATCHED};

/// Writes an `ok` line for the signature, if somebody is to have made one, and for each sound file.
///
/// # Errors
/// When the signature does not hold; when anything is damaged, after the lines of what is sound; when there is no such
/// version.
pub fn run(store: &Store, args: &args::Verify, out: &mut dyn Write) -> Result<(), Failure> {
    let artifact = store.artifact(&args.image.parse()?)?;
    // Before what it signs: a checksum that somebody has changed would blame the file it is of.
    match (&args.key, &args.allowed_signers) {
        (Some(key), _) => checked(&artifact, &Trust::Key(key.clone()), out)?,
        (None, Some(signers)) => checked(&artifact, &Trust::AllowedSigners(signers.clone()), out)?,
        (None, None) => unchecked(&artifact)?,
    }
    let verdict = artifact.verify(UNWATCHED)?;
    for file in verdict.sound.keys() {
        print(out, &format!("ok {}\n", escape(file)))?;
    }
    Ok(verdict.into_result()?)
}

fn checked(artifact: &Artifact, trust: &Trust, out: &mut dyn Write) -> Result<(), Failure> {
    let signer = artifact.check_signature(trust)?;
    print(out, &format!("ok {}, signed by {}\n", trust.tool()?.file(), escape(&signer)))
}

/// A signature that nobody asked about proves nothing, and should not seem to.
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
    use crate::sign::Signer;
    use crate::sign::tests::ssh_key;
    use crate::store::shelf::{Shelf, written};
    use crate::store::{ImageId, Lookup};
    use std::path::Path;

    fn verify(key: Option<&Path>) -> args::Verify {
        args::Verify { image: "web@1".into(), key: key.map(Path::to_owned), allowed_signers: None }
    }

    #[test]
    fn each_sound_file_has_a_line() {
        let shelf = Shelf::with(&["web@1"]);
        let text = written(|out| run(&shelf.store, &verify(None), out)).unwrap();
        assert_eq!(text, "ok manifest.json\nok web-1.qcow2\n");
    }

    #[test]
    fn a_damaged_file_is_named_after_the_sound_ones() {
        let shelf = Shelf::with(&["web@1"]);
        shelf.overwrite("web/1/web-1.qcow2", "dosk");
        let mut out = Vec::new();
        let failure = run(&shelf.store, &verify(None), &mut out).unwrap_err();
        assert_eq!(String::from_utf8(out).unwrap(), "ok manifest.json\n");
        assert_eq!(failure.to_string(), "web@1 is damaged: web-1.qcow2 differs from its checksum");
        assert_eq!(failure.kind().exit_code(), 8);
    }

    #[test]
    fn a_signature_is_checked_for_who_names_the_key() {
        let shelf = Shelf::with(&["web@1"]);
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
