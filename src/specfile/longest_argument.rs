//! The longest string that Linux passes to a program (execve(2)).

/// The longest argument, or variable with its name, bytes: Linux's `MAX_ARG_STRLEN` with the NUL.
pub(super) const LONGEST: usize = (128 << 10) - 1;

/// Returns an error message for a variable that is too long for an environment.
pub(crate) fn too_long(name: &str, value: &str) -> Option<String> {
    let length = name.len() + 1 + value.len();
    (length > LONGEST).then(|| format!("`{name}` with its value has {length} bytes: Linux takes at most {LONGEST}"))
}
