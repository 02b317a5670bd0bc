//! The locked network: programs in the guest connect to a proxy on the guest's loopback, and a port of its own carries their
//! connections to the host.
//!
//! ```text
//! program --TCP--> PROXY, the agent --Connect, Data, Eof, Close over PORT--> the host's proxy
//! ```
//!
//! Each conversation begins with the guest's `Tunnel`, which the host echoes. The guest numbers the streams, upwards from 1.

use super::code::coded_struct;

/// The name of the virtio-serial port.
pub const PORT: &str = "kiln.network.0";

/// The address of the proxy in the guest. The port is above those that Linux gives to outgoing connections.
pub const PROXY: &str = "127.0.0.1:61128";

/// The folder with the files that programs need for the proxy. It is in memory.
pub const FOLDER: &str = "/run/kiln/network";

/// The certificates that programs trust: those of the guest's bundle, and the proxy's authority.
pub const BUNDLE: &str = "/run/kiln/network/bundle.pem";

/// The certificate of the proxy's authority alone.
pub const AUTHORITY: &str = "/run/kiln/network/authority.pem";

/// The most connections at once. Further ones wait in the guest's kernel.
pub const MOST_CONNECTIONS: usize = 64;

coded_struct! {
    /// What a command needs to use the locked network.
    ProxyAccess {
        /// The certificate of the proxy's authority, as PEM.
        authority: Vec<u8>,
    }
}
