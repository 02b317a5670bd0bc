//! `kiln tag`: manages tags and shows their history.

use std::io::Write;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use crate::error::{Failure, Fault, Kind};
use crate::report::escape::escape;
use crate::store::{Reference, Store, Tag, TagChange, TagOperation, Tags};

use super::list::{age, align};
use super::{print, print_json};

/// Arguments of `kiln tag`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that is typed")]
#[command(after_help = "Examples:\n  kiln tag web@1.4.0 candidate        tag a version\n  \
        kiln tag web@candidate stable       promote: tag the version that candidate names\n  \
        kiln tag web stable --rollback      restore the previous target of stable\n  \
        kiln tag web                        list the tags\n  \
        kiln tag web --history stable       list the changes of stable\n  \
        kiln tag web --delete candidate     delete a tag\n\n\
        A tag names one version of an image, and moves atomically: a reader of web@stable gets either the old or the \
        new version. No tag can have the name of a version of its image, nor a version that of a tag.")]
pub struct TagArgs {
    /// Image to tag: `name`, `name@version` or `name@tag`; a bare name is its newest version
    pub image: String,
    /// Tag to set; without one, the tags of the image are listed
    pub tag: Option<Tag>,
    /// Restore the tag's previous target; repeating it steps further back
    #[arg(long, conflicts_with_all = ["delete", "history"])]
    pub rollback: bool,
    /// Delete the tag
    #[arg(short, long, conflicts_with = "history")]
    pub delete: bool,
    /// List the changes of the tag, or of all tags of the image, newest first
    #[arg(long)]
    pub history: bool,
    /// Print the tags, the history or the change as JSON
    #[arg(long)]
    pub json: bool,
}

/// The arguments do not fit together.
#[derive(Debug, thiserror::Error)]
enum TagUsageError {
    /// A usage like `kiln tag web --rollback`, without a tag.
    #[error("{option} needs the tag")]
    NoTag {
        /// The option without its tag.
        option: &'static str,
    },
    /// A usage like `kiln tag web@1.4.0 stable --rollback`, with a version.
    #[error("{option} takes a bare name and a tag, and no version")]
    WithVersion {
        /// The option that takes no version.
        option: &'static str,
        /// The image's name.
        name: String,
        /// Name of the tag.
        tag: String,
    },
}

impl Fault for TagUsageError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            TagUsageError::NoTag { option } => vec![format!("write it as `kiln tag IMAGE TAG {option}`")],
            TagUsageError::WithVersion { option, name, tag } => vec![format!("`kiln tag {name} {tag} {option}`")],
        }
    }
}

/// Sets, rolls back or deletes a tag, or lists tags or their history. Changes are reported on `notes`, which is standard
/// error.
pub fn run(store: &Store, args: &TagArgs, out: &mut dyn Write, notes: &mut dyn Write) -> Result<(), Failure> {
    let image: Reference = args.image.parse()?;
    let change = match (&args.tag, args) {
        (_, TagArgs { history: true, .. }) => return history(store, &image, args, out),
        (_, TagArgs { rollback: true, .. }) => {
            store.roll_back(image.name(), &own_tag(&image, args.tag.as_ref(), "--rollback")?)?
        }
        (_, TagArgs { delete: true, .. }) => {
            store.untag(image.name(), &own_tag(&image, args.tag.as_ref(), "--delete")?)?
        }
        (Some(tag), _) => store.tag(&image, tag)?,
        (None, _) => return list(store, &image, args.json, out),
    };
    if args.json {
        return print_json(out, &format!("{:#}\n", json!(change)));
    }
    // The tag is changed, even if the report cannot be printed.
    let _ = writeln!(notes, "{}", escape(&told(image.name(), &change)));
    Ok(())
}

/// Returns the tag that an option applies to: `web stable` or `web@stable`.
fn own_tag(image: &Reference, tag: Option<&Tag>, option: &'static str) -> Result<Tag, Failure> {
    match (image.selector(), tag) {
        (None, Some(tag)) => Ok(tag.clone()),
        (Some(selector), None) => Ok(selector.parse()?),
        (None, None) => Err(TagUsageError::NoTag { option }.into()),
        (Some(_), Some(tag)) => {
            Err(TagUsageError::WithVersion { option, name: image.name().to_owned(), tag: tag.to_string() }.into())
        }
    }
}

fn told(name: &str, change: &TagChange) -> String {
    let tag = format!("{name}@{}", change.tag);
    let was = change.from.as_ref().map(|from| format!(", it was {from}")).unwrap_or_default();
    match (&change.to, change.how) {
        (None, _) => format!("{tag} is no more{was}"),
        (Some(to), _) if change.is_nothing() => format!("{tag} is {to} already"),
        (Some(to), TagOperation::Rollback) => format!("{tag} is {to} again{was}"),
        (Some(to), _) => format!("{tag} is {to} now{was}"),
    }
}

/// Lists the tags of an image; with a version, those that name it.
fn list(store: &Store, image: &Reference, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let tags = store.tags(image.name())?;
    let version = match image.selector() {
        Some(_) => Some(store.artifact(image)?.id().version().to_owned()),
        None => None,
    };
    let shown = tags.named.iter().filter(|(_, named)| version.as_ref().is_none_or(|version| version == *named));
    if json {
        let shown: serde_json::Map<_, _> = shown.map(|(tag, named)| (tag.clone(), json!(named))).collect();
        return print_json(out, &format!("{:#}\n", json!(shown)));
    }
    let rows = shown.map(|(tag, named)| [tag.clone(), named.clone(), since(&tags, tag)]);
    print(out, &align(&head(["TAG", "VERSION", "SINCE"]).chain(rows).collect::<Vec<_>>()))
}

fn head<const N: usize>(words: [&str; N]) -> impl Iterator<Item = [String; N]> {
    std::iter::once(words.map(str::to_owned))
}

/// Returns the age of a tag's last change, if it is in the history.
fn since(tags: &Tags, tag: &str) -> String {
    let last = tags.history.iter().rev().find(|change| change.tag == tag);
    last.map(|change| age(Timestamp::now().duration_since(change.at).as_secs())).unwrap_or_default()
}

fn history(store: &Store, image: &Reference, args: &TagArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let tag = match (image.selector(), &args.tag) {
        (None, None) => None,
        _ => Some(own_tag(image, args.tag.as_ref(), "--history")?),
    };
    let changes = store.tag_history(image.name(), tag.as_ref())?;
    if args.json {
        return print_json(out, &format!("{:#}\n", json!(changes)));
    }
    print(out, &align(&head(["WHEN", "TAG", "FROM", "TO", "HOW"]).chain(changes.iter().map(row)).collect::<Vec<_>>()))
}

fn row(change: &TagChange) -> [String; 5] {
    let how = match (change.how, &change.promoted) {
        (TagOperation::Set, Some(promoted)) => format!("promoted from {promoted}"),
        (TagOperation::Set, None) => "set".to_owned(),
        (TagOperation::Rollback, _) => "rolled back".to_owned(),
        (TagOperation::Delete, _) => "taken off".to_owned(),
    };
    let when = change.at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    let from = change.from.as_deref().unwrap_or("-").to_owned();
    let to = change.to.as_deref().unwrap_or("-").to_owned();
    [when, change.tag.clone(), from, to, how]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::TestStore;

    /// Runs `kiln tag`, and returns its standard output and its report.
    fn tag(shelf: &TestStore, image: &str, tag: Option<&str>, option: &str) -> Result<(String, String), Failure> {
        let args = TagArgs {
            image: image.to_owned(),
            tag: tag.map(|tag| tag.parse().unwrap()),
            rollback: option == "--rollback",
            delete: option == "--delete",
            history: option == "--history",
            json: option == "--json",
        };
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        run(&shelf.store, &args, &mut out, &mut notes)?;
        Ok((String::from_utf8(out).unwrap(), String::from_utf8(notes).unwrap()))
    }

    fn notes(shelf: &TestStore, image: &str, name: Option<&str>, option: &str) -> String {
        let (out, notes) = tag(shelf, image, name, option).unwrap();
        assert_eq!(out, "", "a change has no result");
        notes
    }

    #[test]
    fn a_tag_is_set_promoted_rolled_back_and_taken_off() {
        let shelf = TestStore::with(&["web@1", "web@2"]);
        assert_eq!(notes(&shelf, "web@1", Some("stable"), ""), "web@stable is 1 now\n");
        assert_eq!(notes(&shelf, "web", Some("candidate"), ""), "web@candidate is 2 now\n");
        assert_eq!(notes(&shelf, "web@candidate", Some("stable"), ""), "web@stable is 2 now, it was 1\n");
        assert_eq!(notes(&shelf, "web@candidate", Some("stable"), ""), "web@stable is 2 already\n");
        assert_eq!(notes(&shelf, "web", Some("stable"), "--rollback"), "web@stable is 1 again, it was 2\n");
        assert_eq!(notes(&shelf, "web@candidate", None, "--delete"), "web@candidate is no more, it was 2\n");
        let (out, _) = tag(&shelf, "web", None, "").unwrap();
        assert_eq!(out, "TAG     VERSION  SINCE\nstable  1        just now\n");
        let (out, _) = tag(&shelf, "web@2", None, "").unwrap();
        assert_eq!(out, "TAG  VERSION  SINCE\n");
        assert_eq!(tag(&shelf, "web", None, "--json").unwrap().0, "{\n  \"stable\": \"1\"\n}\n");
        let changed = tag(&shelf, "web@2", Some("stable"), "--json").unwrap().0;
        let changed: TagChange = serde_json::from_str(&changed).unwrap();
        assert_eq!(
            (changed.from.as_deref(), changed.to.as_deref(), changed.how),
            (Some("1"), Some("2"), TagOperation::Set)
        );
    }

    #[test]
    fn the_history_says_what_and_how_newest_first() {
        let shelf = TestStore::with(&["web@1", "web@2"]);
        for (image, name, option) in [
            ("web@1", "stable", ""),
            ("web", "candidate", ""),
            ("web@candidate", "stable", ""),
            ("web", "stable", "--rollback"),
        ] {
            tag(&shelf, image, Some(name), option).unwrap();
        }
        tag(&shelf, "web", Some("stable"), "--delete").unwrap();
        let rows = |name| {
            let (out, _) = tag(&shelf, "web", name, "--history").unwrap();
            // The first 23 columns are the time.
            out.lines().map(|line| line[25..].to_owned()).collect::<Vec<_>>()
        };
        let expected = [
            "TAG     FROM  TO  HOW",
            "stable  1     -   taken off",
            "stable  2     1   rolled back",
            "stable  1     2   promoted from candidate",
            "stable  -     1   set",
        ];
        assert_eq!(rows(Some("stable")), expected);
        assert_eq!(rows(None).len(), 6);
        let hints = tag(&shelf, "web", Some("candidat"), "--history").unwrap_err().hints();
        assert_eq!(hints, ["did you mean `candidate`?", "tags there are: candidate"]);
    }

    #[test]
    fn words_that_do_not_fit_together_are_told() {
        let shelf = TestStore::with(&["web@1"]);
        for (image, name, option) in [("web", None, "--rollback"), ("web@1", Some("stable"), "--delete")] {
            let failure = tag(&shelf, image, name, option).unwrap_err();
            assert_eq!(failure.kind().exit_code(), 2);
            assert!(failure.hints()[0].contains(option), "{:?}", failure.hints());
        }
    }
}
