//! Lookup of host names where the C library is linked statically.

use std::ffi::{c_char, c_int};
use std::sync::Once;

/// Limits the lookup of host names to `/etc/hosts` and DNS, which the static C library contains. It would load the other
/// services of `/etc/nsswitch.conf` from libraries of the host, and crashes where these are of another version.
#[expect(unsafe_code, reason = "nix does not have the function")]
pub(super) fn use_built_in_services() {
    unsafe extern "C" {
        fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
    }
    static ONCE: Once = Once::new();
    // SAFETY: both arguments are constant strings, and no name is looked up before the first call has returned.
    ONCE.call_once(|| {
        unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
    });
}
