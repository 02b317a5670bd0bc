//! The JSON Schema of spec files, which the declarations of the tables produce.

use serde_json::Value as Json;

use super::keys;
use super::table::{Table, object};

/// Returns the JSON Schema, draft 7, of a spec file, for editors. It is generated from the declarations that specs are read
/// with.
#[must_use]
pub fn schema() -> Json {
    root_schema::<keys::Document>()
}

/// Returns the schema of a whole document.
fn root_schema<T: Table>() -> Json {
    let mut schema = object(T::keys());
    schema["$schema"] = "http://json-schema.org/draft-07/schema#".into();
    schema["title"] = T::ABOUT.trim().trim_end_matches('.').into();
    schema
}
