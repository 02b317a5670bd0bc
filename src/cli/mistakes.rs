//! Tips for command-line mistakes that are not spelling mistakes: names of commands and options in other tools.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Commands of other tools, and their equivalents in kiln.
const COMMANDS: &[(&[&str], &str)] = &[
    (&["validate", "lint", "verify-spec", "vet"], "`kiln check SPEC` checks specs"),
    (
        &["log", "journal"],
        "`kiln logs IMAGE` prints the log of a version, and `kiln logs SPEC` that of the last failed build",
    ),
    (&["history"], "`kiln inspect IMAGE` shows the steps of a version, and `kiln tag IMAGE --history` what tags named"),
    (&["images", "image", "versions", "ls"], "`kiln list` lists images and versions"),
    (&["kill", "halt", "shutdown"], "`kiln stop ID` ends a machine; `kiln ps` lists them"),
    (&["up", "start", "boot", "launch"], "`kiln run IMAGE` boots a throw-away clone of an image"),
    (
        &["push", "publish", "upload", "deploy"],
        "`kiln export IMAGE` writes files for other platforms; a store is a folder that any tool copies",
    ),
    (&["pull", "fetch", "download"], "`kiln build` downloads base images; `kiln lock` pins them"),
    (&["rm", "rmi", "delete", "destroy"], "`kiln remove IMAGE` deletes a version"),
    (&["prune", "clean", "cleanup"], "`kiln gc` makes room"),
    (
        &["ssh", "exec", "console", "connect", "attach", "debug"],
        "`kiln run IMAGE --ssh` logs in to a clone; `kiln shell IMAGE` opens a shell in one without SSH",
    ),
    (&["new", "create", "scaffold"], "`kiln init` writes a spec to begin with"),
    (&["make", "bake"], "`kiln build SPEC` builds an image"),
    (
        &["promote", "rollback", "rename"],
        "`kiln tag` moves tags: `kiln tag web@candidate stable`, `kiln tag web stable --rollback`",
    ),
    (&["show", "describe", "info", "manifest"], "`kiln inspect IMAGE` shows a version's manifest"),
    (&["compare", "changes"], "`kiln diff A B` compares two images"),
    (&["dry-run", "preview", "graph"], "`kiln plan SPEC` shows what a build would do"),
    (&["update", "upgrade", "status"], "`kiln outdated` tells which images should be built again"),
    (&["convert"], "`kiln export IMAGE --format F` makes another format of an image"),
    (&["sign"], "`kiln build --sign KEY` signs a version, also one that is up to date"),
    (&["version"], "`kiln --version` prints the version"),
    (&["format", "fmt"], "there is no formatter of specs; `kiln check SPEC` checks them"),
];

/// Options of other tools, and their equivalents in kiln.
const OPTIONS: &[(&[&str], &str)] = &[
    (&["-f", "--file", "--spec", "-c", "--config"], "specs are named without an option: `kiln build web.toml`"),
    (&["-t", "--tag"], "the spec names the image; `kiln tag IMAGE TAG` gives a version a tag"),
    (&["-e", "--env", "--build-arg", "--set", "-D"], "`--var NAME=VALUE` sets a variable that the spec declares"),
    (&["--force"], "`--replace` replaces a version that was built from other inputs"),
    (&["--dry-run", "-n"], "`kiln plan SPEC` shows what a build would do"),
    (&["--debug", "--verbose=2", "-vv"], "`-v` shows the guest's console and details as well"),
    (&["--rm"], "nothing of a clone is kept"),
    (&["--publish"], "`-p HOST:GUEST` forwards a port of this host to the guest"),
    (&["--parallel"], "`--jobs N` builds as many images at once"),
    (&["--output-dir", "--out"], "`-o DIR` also puts the files there"),
    (
        &["--memory", "--cpus", "--disk", "-m"],
        "the spec sets the machine of a build: `memory`, `cpus` and `disk` under `[machine]`",
    ),
    (
        &["--ova", "--vmdk", "--vhd", "--vhdx", "--vdi", "--qcow2", "--raw", "--vagrant", "--incus"],
        "`--format F` chooses a format",
    ),
];

/// Replaces clap's guess by spelling with the intended command or option, if it is known. No command takes an argument that
/// begins with a dash, so clap's tip about how to pass one is never useful.
pub(super) fn explain_mistake(mut error: clap::Error) -> clap::Error {
    if error.kind() == ErrorKind::UnknownArgument {
        drop_escape_tip(&mut error);
    }
    if let Some(tip) = tip(&error) {
        let guesses = [
            ContextKind::SuggestedCommand,
            ContextKind::SuggestedSubcommand,
            ContextKind::SuggestedArg,
            ContextKind::SuggestedValue,
            ContextKind::Suggested,
        ];
        for guess in guesses {
            error.remove(guess);
        }
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(tip.to_owned())]));
    }
    error
}

/// Removes clap's tip to put `--` before an unknown option.
fn drop_escape_tip(error: &mut clap::Error) {
    let Some(ContextValue::StyledStrs(tips)) = error.remove(ContextKind::Suggested) else { return };
    let tips: Vec<_> = tips.into_iter().filter(|tip| !tip.to_string().contains("-- -")).collect();
    if !tips.is_empty() {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
}

fn tip(error: &clap::Error) -> Option<&'static str> {
    let (table, kind) = match error.kind() {
        ErrorKind::InvalidSubcommand => (COMMANDS, ContextKind::InvalidSubcommand),
        ErrorKind::UnknownArgument => (OPTIONS, ContextKind::InvalidArg),
        _ => return None,
    };
    let Some(ContextValue::String(typed)) = error.get(kind) else { return None };
    table.iter().find(|(names, _)| names.contains(&typed.as_str())).map(|(_, tip)| *tip)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::super::command_line::Cli;
    use super::*;

    fn explained(args: &[&str]) -> String {
        let typed = std::iter::once("kiln").chain(args.iter().copied());
        explain_mistake(Cli::try_parse_from(typed).unwrap_err()).render().to_string()
    }

    #[test]
    fn a_command_of_another_tool_is_explained_by_its_meaning() {
        for (typed, meant) in
            [("validate", "kiln check"), ("up", "kiln run"), ("images", "kiln list"), ("push", "kiln export")]
        {
            let text = explained(&[typed]);
            assert!(text.contains(meant) && !text.contains("similar"), "{typed}: {text}");
        }
        assert!(explained(&["history"]).contains("kiln inspect") && explained(&["journal"]).contains("kiln logs"));
        assert!(explained(&["biuld"]).contains("'build'"), "slips of typing are clap's");
    }

    #[test]
    fn an_option_of_another_tool_is_explained_by_its_meaning() {
        let text = explained(&["build", "-f", "x.toml"]);
        assert!(text.contains("kiln build web.toml") && !text.contains("-- -f"), "{text}");
        assert!(explained(&["build", ".", "--dry-run"]).contains("kiln plan"));
        assert!(explained(&["build", "x", "--memory", "1G"]).contains("[machine]"));
        assert!(explained(&["export", "x", "--ova"]).contains("--format"));
    }

    #[test]
    fn no_option_is_to_be_passed_as_a_value() {
        for args in [&["build", "x", "--frobnicate"][..], &["list", "-Z"], &["check", "x", "--jobz"], &["-Q"]] {
            let text = explained(args);
            assert!(text.contains("unexpected argument") && !text.contains("-- -"), "{text}");
        }
    }

    #[test]
    fn no_command_is_explained_away() {
        let commands: Vec<String> =
            Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
        let explained = COMMANDS.iter().flat_map(|(names, _)| *names);
        assert_eq!(explained.filter(|name| commands.iter().any(|command| command == *name)).count(), 0);
    }
}
