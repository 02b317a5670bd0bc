//! The ports of this host that lead into a guest: finds free ones, and who has those that are taken.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::Path;

use crate::error::{Fault, Kind};
use crate::machine_registry::MACHINES;
use crate::plan::port_forward::{PortForward, PortProtocol, PortRequest};

/// State of a TCP socket that listens, in `/proc/net/tcp` (`proc_net(5)`).
const LISTENING: &str = "0A";

/// The process that has a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortOwner {
    /// Process id.
    pub pid: u32,
    /// Name of the program.
    pub name: String,
    /// The machine of `kiln run` whose QEMU it is, if it is one.
    pub machine: Option<String>,
}

/// The reason why a port of this host cannot lead into a guest.
#[derive(Debug, thiserror::Error)]
pub enum HostPortError {
    /// Another process has the port.
    #[error("port {port} of {address} is taken{}", describe(owner.as_ref()))]
    Taken {
        /// Address of this host.
        address: Ipv4Addr,
        /// Port of this host.
        port: u16,
        /// Transport protocol.
        protocol: PortProtocol,
        /// The process that has it, if this user can see that.
        owner: Option<PortOwner>,
    },
    /// The port is requested twice.
    #[error("port {port} of {address} is requested twice")]
    Twice {
        /// Address of this host.
        address: Ipv4Addr,
        /// Port of this host.
        port: u16,
    },
    /// The port cannot be bound for another reason.
    #[error("cannot use port {port} of {address}")]
    Unusable {
        /// Address of this host.
        address: Ipv4Addr,
        /// Port of this host; 0 for any.
        port: u16,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
}

fn describe(owner: Option<&PortOwner>) -> String {
    match owner {
        None => String::new(),
        Some(PortOwner { machine: Some(id), .. }) => format!(" by the machine {id}"),
        Some(PortOwner { pid, name, machine: None }) => format!(" by `{name}`, process {pid}"),
    }
}

impl Fault for HostPortError {
    fn kind(&self) -> Kind {
        match self {
            Self::Twice { .. } => Kind::Usage,
            _ => Kind::Host,
        }
    }

    fn hints(&self) -> Vec<String> {
        let another = "choose another port of this host, or name the guest's port alone for a free one, as in `-p 80`";
        match self {
            Self::Taken { owner: Some(PortOwner { machine: Some(id), .. }), .. } => {
                vec![format!("`kiln stop {id}` ends it"), another.into()]
            }
            Self::Taken { owner: Some(_), .. } => vec![another.into()],
            Self::Taken { owner: None, port, protocol, .. } => {
                let kind = if *protocol == PortProtocol::Tcp { 't' } else { 'u' };
                let who = format!("`sudo ss -l{kind}np sport = :{port}` names the process that has it");
                vec![who, another.into()]
            }
            Self::Twice { .. } => vec!["give each port of the guest a port of this host of its own".into()],
            Self::Unusable { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                vec!["ports below 1024 are for root: choose a higher one".into()]
            }
            Self::Unusable { source, .. } if source.kind() == ErrorKind::AddrNotAvailable => {
                vec!["the address must be one of this host, or 0.0.0.0 for all of them".into()]
            }
            Self::Unusable { .. } => Vec::new(),
        }
    }
}

/// A bound socket, which keeps its port.
enum BoundSocket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl BoundSocket {
    fn bind(protocol: PortProtocol, address: Ipv4Addr, port: u16) -> io::Result<Self> {
        let at = SocketAddrV4::new(address, port);
        match protocol {
            PortProtocol::Tcp => TcpListener::bind(at).map(Self::Tcp),
            PortProtocol::Udp => UdpSocket::bind(at).map(Self::Udp),
        }
    }

    fn port(&self) -> io::Result<u16> {
        let bound = match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        };
        bound.map(|address| address.port())
    }
}

/// Gives each request a port of this host: the one that the user has chosen, which must be free, or any free one.
///
/// # Errors
/// When a port is taken, requested twice or cannot be used.
pub fn choose_ports(requests: &[PortRequest]) -> Result<Vec<PortForward>, HostPortError> {
    let mut forwards: Vec<PortForward> = Vec::new();
    // Bound until all are chosen, so that no free port is chosen twice. QEMU binds them anew.
    let mut bound = Vec::new();
    // Those that the user has chosen come first: a free one must not be one of them.
    let (chosen, free): (Vec<&PortRequest>, Vec<&PortRequest>) =
        requests.iter().partition(|request| request.host.is_some());
    for request in chosen.into_iter().chain(free) {
        let PortRequest { protocol, address, host, guest } = *request;
        let port = host.unwrap_or(0);
        let wanted = PortForward { protocol, address, host: port, guest };
        if port != 0 && forwards.iter().any(|forward| forward.collides_with(&wanted)) {
            return Err(HostPortError::Twice { address, port });
        }
        let socket = BoundSocket::bind(protocol, address, port).map_err(|error| explain(error, &wanted))?;
        let host = socket.port().map_err(|source| HostPortError::Unusable { address, port, source })?;
        bound.push(socket);
        forwards.push(PortForward { host, ..wanted });
    }
    Ok(forwards)
}

fn explain(source: io::Error, wanted: &PortForward) -> HostPortError {
    let PortForward { protocol, address, host: port, .. } = *wanted;
    if source.kind() != ErrorKind::AddrInUse {
        return HostPortError::Unusable { address, port, source };
    }
    HostPortError::Taken { address, port, protocol, owner: find_owner(protocol, port) }
}

/// Returns the process that has a port, as far as this user may see it.
fn find_owner(protocol: PortProtocol, port: u16) -> Option<PortOwner> {
    let sockets = find_sockets(protocol, port);
    let links: Vec<String> = sockets.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|pid| has_descriptor(*pid, &links)).map(describe_process).next()
}

/// Returns the inodes of the sockets with this port, by the tables of `proc_net(5)`: a local address `0100007F:1F90`, the state
/// in the fourth column, the inode in the tenth.
fn find_sockets(protocol: PortProtocol, port: u16) -> Vec<String> {
    let tables = ["", "6"].map(|version| format!("/proc/net/{}{version}", protocol.name()));
    let tables = tables.map(|table| fs::read_to_string(table).unwrap_or_default());
    let wanted = format!(":{port:04X}");
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    let inodes = lines.filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (columns.get(1)?, columns.get(3)?, columns.get(9)?);
        let is_waiting = protocol == PortProtocol::Udp || *state == LISTENING;
        (local.ends_with(&wanted) && is_waiting).then(|| (*inode).to_owned())
    });
    inodes.collect()
}

fn has_descriptor(pid: u32, links: &[String]) -> bool {
    // Another user's process shows none.
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.any(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
}

fn describe_process(pid: u32) -> PortOwner {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    let folder = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
    PortOwner { pid, name, machine: machine_of(&folder) }
}

/// Returns the machine whose folder this is; QEMU works in that.
fn machine_of(folder: &Path) -> Option<String> {
    let parent = folder.parent()?.file_name()?;
    (parent == MACHINES).then(|| folder.file_name().map(|name| name.to_string_lossy().into_owned())).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(texts: &[&str]) -> Vec<PortRequest> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn free_ports_are_chosen_and_are_not_the_same() {
        let forwards = choose_ports(&requests(&["80", "81", "53/udp"])).unwrap();
        assert!(forwards.iter().all(|forward| forward.host >= 1024), "{forwards:?}");
        assert_ne!(forwards[0].host, forwards[1].host);
        assert_eq!(forwards.iter().map(|forward| forward.guest).collect::<Vec<_>>(), [80, 81, 53]);
        // They are free again.
        TcpListener::bind(("127.0.0.1", forwards[0].host)).unwrap();
    }

    #[test]
    fn a_taken_port_is_refused_with_the_process_that_has_it() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let ports = [tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port()];
        for (port, end) in [(ports[0], ""), (ports[1], "/udp")] {
            let error = choose_ports(&requests(&[&format!("{port}:80{end}")])).unwrap_err();
            let own = std::process::id();
            assert!(matches!(&error, HostPortError::Taken { owner: Some(owner), .. } if owner.pid == own), "{error:?}");
            assert!(error.to_string().contains(&format!("process {own}")), "{error}");
        }
    }

    #[test]
    fn a_port_is_given_once() {
        let port = choose_ports(&requests(&["80"])).unwrap()[0].host;
        let twice = requests(&[&format!("{port}:80"), &format!("{port}:81")]);
        assert!(matches!(choose_ports(&twice), Err(HostPortError::Twice { .. })));
        choose_ports(&requests(&[&format!("{port}:80"), &format!("{port}:80/udp")])).unwrap();
    }

    #[test]
    fn another_hosts_address_is_refused_with_a_hint() {
        let error = choose_ports(&requests(&["192.0.2.7:8080:80"])).unwrap_err();
        assert!(error.hints()[0].contains("one of this host"), "{error:?}");
    }

    #[test]
    fn a_machine_is_known_by_its_folder() {
        assert_eq!(machine_of(Path::new("/home/u/.cache/kiln/machines/web-1")).as_deref(), Some("web-1"));
        assert_eq!(machine_of(Path::new("/srv/www")), None);
        let owner = PortOwner { pid: 7, name: "kiln-guest".into(), machine: Some("web-1".into()) };
        assert_eq!(describe(Some(&owner)), " by the machine web-1");
    }
}
