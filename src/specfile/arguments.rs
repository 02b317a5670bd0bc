//! Limits of what Linux passes to a new program. execve(2) refuses more, which would otherwise end a build after minutes.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Command;
use super::complaint::SpecError;
use super::document::SpannedValue;
use super::longest_argument::{LONGEST, too_long};
use super::reader::SpecReader;
use super::value_kinds::{Text, ValueProblem, text};

/// The longest shell script in a string, bytes. The agent accepts 1 MiB, with environment and secrets.
const LONGEST_SCRIPT: usize = 512 << 10;
/// The most that all arguments and variables of a program may take together, bytes: a quarter of its stack of 8 MiB, less
/// what a login adds.
const MOST: usize = (2 << 20) - (64 << 10);
/// The bytes that each argument or variable takes besides its own: a NUL and a pointer.
const OVERHEAD: usize = 9;
/// Shells that a `#!` line may name in a string that `sh` reads.
const SHELLS: [&str; 3] = ["sh", "dash", "ash"];
/// Programs whose first argument is the program to start.
const STARTERS: [&str; 2] = ["env", "busybox"];
/// Interpreters that can also take a script as an argument, and the option for that.
const INTERPRETERS: [(&str, &str); 6] =
    [("bash", "-euc"), ("zsh", "-euc"), ("ksh", "-euc"), ("python3", "-c"), ("perl", "-e"), ("ruby", "-e")];
const HELP: &str = "put it into a file with `write` or `copy`, or run it as a `script`";

/// Accepts a string that is passed to a program as an argument.
pub(super) fn argument() -> Text<String> {
    let Text { expects, schema, parse } = text();
    Text::new(expects, schema, move |text| {
        if text.len() > LONGEST {
            let message = format!("an argument of {} bytes: Linux takes at most {LONGEST}", text.len());
            return Err(ValueProblem { message, help: Some(HELP.to_owned()) });
        }
        parse(text)
    })
}

/// Accepts a shell script in a string.
pub(super) fn script() -> Text<String> {
    let Text { expects, schema, parse } = text();
    Text::new(expects, schema, move |text| {
        if text.len() > LONGEST_SCRIPT {
            let message = format!("a script of {} bytes: at most {LONGEST_SCRIPT} are allowed", text.len());
            return Err(ValueProblem { message, help: Some(HELP.to_owned()) });
        }
        check_interpreter(text)?;
        parse(text)
    })
}

/// Refuses a script whose `#!` line names another interpreter than the shell that reads it: to that shell the line is a
/// comment.
fn check_interpreter(text: &str) -> Result<(), ValueProblem> {
    let line = text.trim_start().lines().next().unwrap_or_default();
    let Some(program) = line.strip_prefix("#!").and_then(find_program) else { return Ok(()) };
    if SHELLS.contains(&program) {
        return Ok(());
    }
    let message = format!("the line `{}` has no effect here: the string is run by `sh -eu`", line.trim_end());
    let file = "put the script into a file, and name that in a step with `script`";
    let help = match INTERPRETERS.iter().find(|(name, _)| *name == program) {
        Some((name, option)) => format!("{file}, or write `run = [\"{name}\", \"{option}\", \"...\"]`"),
        None => file.to_owned(),
    };
    Err(ValueProblem { message, help: Some(help) })
}

/// Returns the name of the program that the rest of a `#!` line starts.
fn find_program(rest: &str) -> Option<&str> {
    let programs = rest.split_whitespace().filter(|word| !word.starts_with('-') && !word.contains('='));
    programs.map(|word| word.rsplit('/').next().unwrap_or(word)).find(|name| !STARTERS.contains(name))
}

/// Returns the arguments of a command that is run without a shell; a script for a shell is a file and may be longer.
pub(super) fn words(command: &Command) -> Vec<&str> {
    match command {
        Command::Shell(_) => Vec::new(),
        Command::Argv(words) => words.iter().map(String::as_str).collect(),
    }
}

/// Reports variables of a step's environment that are too long, each at its place in the spec.
pub(super) fn check_environment(environment: &BTreeMap<String, SpannedValue<String>>, reader: &mut SpecReader) {
    for (name, value) in environment {
        if let Some(refusal) = too_long(name, &value.value) {
            reader.report(SpecError::new(value.span.clone(), refusal).help(HELP));
        }
    }
}

/// Returns how many bytes these strings take of what Linux passes to a program.
pub(super) fn weigh<'s>(strings: impl Iterator<Item = &'s str>) -> usize {
    strings.map(|string| string.len() + OVERHEAD).sum()
}

/// Reports a program whose arguments and variables are too long together.
pub(super) fn check_sum(sum: usize, span: &Range<usize>, reader: &mut SpecReader) {
    if sum > MOST {
        let message = format!("arguments and variables of {sum} bytes together: Linux takes at most {MOST}");
        reader.report(SpecError::new(span.clone(), message).help(HELP));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_for_the_shell_names_no_other_interpreter() {
        for text in [
            "echo\n#!/bin/bash",
            "#!/bin/sh\necho",
            "#! /bin/sh -eux\necho",
            "#!/usr/bin/env sh\n",
            "#!/bin/busybox sh\n",
            "#!/bin/dash",
            "#!\n",
            "# a comment",
        ] {
            assert!(check_interpreter(text).is_ok(), "{text:?}");
        }
        for (text, program) in [
            ("#!/bin/bash\n[[ a ]]", "[\"bash\", \"-euc\""),
            ("\n  #!/usr/bin/env -S bash -eu\n", "[\"bash\""),
            ("#!/usr/bin/env python3\nprint(1)\n", "[\"python3\", \"-c\""),
            ("#!/opt/tool --run\n", "`script`"),
        ] {
            let refusal = check_interpreter(text).unwrap_err();
            assert!(refusal.message.contains("`#!") && refusal.help.unwrap().contains(program), "{text:?}");
        }
    }
}
