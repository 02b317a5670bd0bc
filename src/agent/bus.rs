//! The part of D-Bus that reading a property and starting a unit of systemd need (D-Bus specification, "Message Protocol").

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The time-out of an answer of the bus. PID 1 may be busy for a while.
const PATIENCE: Duration = Duration::from_secs(1);
/// The time-out of the answer to a queued job: planning a job that concerns every unit takes longer.
const JOB_PATIENCE: Duration = Duration::from_secs(30);
/// The largest answer that is read, in bytes.
const LARGEST: usize = 64 << 10;

const LITTLE_ENDIAN: u8 = b'l';
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const NO_AUTO_START: u8 = 2;
const PROTOCOL_VERSION: u8 = 1;

const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_DESTINATION: u8 = 6;
const FIELD_SIGNATURE: u8 = 8;

/// A property of an object on the bus.
#[derive(Debug, Clone, Copy)]
pub struct Property<'a> {
    /// Bus name of its owner.
    pub destination: &'a str,
    /// Path of the object.
    pub path: &'a str,
    /// Interface that has it.
    pub interface: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// A call of a method that takes strings alone.
struct MethodCall<'a> {
    destination: &'a str,
    path: &'a str,
    interface: &'a str,
    member: &'a str,
    arguments: &'a [&'a str],
}

/// A connection to a bus, or to PID 1 itself.
#[derive(Debug)]
pub struct Bus {
    stream: UnixStream,
    serial: u32,
}

impl Bus {
    /// Connects to a socket of the bus, or of PID 1, as root.
    pub fn connect(path: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // The user id of root (`0`) as a string, in hex.
        stream.write_all(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n")?;
        let mut byte = [0];
        let mut line = Vec::new();
        while byte != *b"\n" {
            stream.read_exact(&mut byte)?;
            line.push(byte[0]);
            if line.len() > 512 {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        if line.starts_with(b"OK ") {
            Ok(Self { stream, serial: 0 })
        } else {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }

    /// Introduces the connection, as a bus demands and PID 1 does not.
    pub fn greeted(mut self) -> io::Result<Self> {
        const BUS: &str = "org.freedesktop.DBus";
        let path = "/org/freedesktop/DBus";
        self.call(&MethodCall { destination: BUS, path, interface: BUS, member: "Hello", arguments: &[] })?;
        Ok(self)
    }

    /// Asks systemd to start a unit, and returns when the job is queued.
    pub fn start_unit(&mut self, unit: &str, mode: &str) -> io::Result<()> {
        self.queue_job("StartUnit", unit, mode)
    }

    /// Asks systemd to stop a unit, and returns when the job is queued.
    pub fn stop_unit(&mut self, unit: &str) -> io::Result<()> {
        self.queue_job("StopUnit", unit, "replace")
    }

    fn queue_job(&mut self, member: &str, unit: &str, mode: &str) -> io::Result<()> {
        let call = MethodCall {
            destination: "org.freedesktop.systemd1",
            path: "/org/freedesktop/systemd1",
            interface: "org.freedesktop.systemd1.Manager",
            member,
            arguments: &[unit, mode],
        };
        self.stream.set_read_timeout(Some(JOB_PATIENCE))?;
        self.call(&call).map(|_| ())
    }

    /// Reads a property that is a string.
    pub fn string(&mut self, property: &Property<'_>) -> io::Result<String> {
        let body = self.get(property)?;
        let text = variant(&body, b's').and_then(|value| {
            let length = u32::from_le_bytes(value.get(..4)?.try_into().ok()?);
            value.get(4..4 + usize::try_from(length).ok()?)
        });
        text.map(|text| String::from_utf8_lossy(text).into_owned()).ok_or(io::ErrorKind::InvalidData.into())
    }

    /// Reads a property that is a boolean.
    pub fn boolean(&mut self, property: &Property<'_>) -> io::Result<bool> {
        let body = self.get(property)?;
        let value = variant(&body, b'b').and_then(|value| value.first());
        value.map(|byte| *byte != 0).ok_or(io::ErrorKind::InvalidData.into())
    }

    fn get(&mut self, property: &Property<'_>) -> io::Result<Vec<u8>> {
        let Property { destination, path, interface, name } = *property;
        let properties = "org.freedesktop.DBus.Properties";
        let arguments = &[interface, name];
        self.call(&MethodCall { destination, path, interface: properties, member: "Get", arguments })
    }

    /// Calls a method and returns the body of its answer; signals before it are skipped.
    fn call(&mut self, call: &MethodCall<'_>) -> io::Result<Vec<u8>> {
        self.serial += 1;
        self.stream.write_all(&encode(call, self.serial))?;
        loop {
            let (kind, body) = self.receive()?;
            match kind {
                METHOD_RETURN => return Ok(body),
                ERROR => return Err(io::Error::other("the bus refused")),
                _ => {}
            }
        }
    }

    /// Reads one message, and returns its type and its body.
    fn receive(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        let words = head.as_chunks().0;
        let body = u32::from_le_bytes(words[1]) as usize;
        let fields = (u32::from_le_bytes(words[3]) as usize).next_multiple_of(8);
        if head[0] != LITTLE_ENDIAN || body + fields > LARGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut rest = vec![0; fields + body];
        self.stream.read_exact(&mut rest)?;
        Ok((head[1], rest.split_off(fields)))
    }
}

/// Returns the value in a variant of this type, which begins at a multiple of four bytes.
fn variant(body: &[u8], kind: u8) -> Option<&[u8]> {
    body.strip_prefix(&[1, kind, 0])?.get(1..)
}

fn encode(call: &MethodCall<'_>, serial: u32) -> Vec<u8> {
    let mut fields = Vec::new();
    put_field(&mut fields, FIELD_PATH, b'o', call.path);
    put_field(&mut fields, FIELD_INTERFACE, b's', call.interface);
    put_field(&mut fields, FIELD_MEMBER, b's', call.member);
    put_field(&mut fields, FIELD_DESTINATION, b's', call.destination);
    let mut body = Vec::new();
    for argument in call.arguments {
        put_string(&mut body, argument);
    }
    if !body.is_empty() {
        put_signature(&mut fields, &"s".repeat(call.arguments.len()));
    }
    let mut message = vec![LITTLE_ENDIAN, METHOD_CALL, NO_AUTO_START, PROTOCOL_VERSION];
    message.extend(length(&body));
    message.extend(serial.to_le_bytes());
    message.extend(length(&fields));
    message.extend(fields);
    pad(&mut message, 8);
    message.extend(body);
    message
}

fn put_field(out: &mut Vec<u8>, code: u8, kind: u8, value: &str) {
    pad(out, 8);
    out.extend([code, 1, kind, 0]);
    put_string(out, value);
}

fn put_signature(out: &mut Vec<u8>, signature: &str) {
    pad(out, 8);
    out.extend([FIELD_SIGNATURE, 1, b'g', 0, u8::try_from(signature.len()).unwrap_or_default()]);
    out.extend(signature.bytes().chain([0]));
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    pad(out, 4);
    out.extend(length(text.as_bytes()));
    out.extend(text.bytes().chain([0]));
}

fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers as PID 1 does: a signal first, then the property.
    fn answer(stream: &mut UnixStream, value: &[u8]) {
        let message = |kind: u8, body: &[u8]| {
            let fields = [5, 1, b'u', 0, 1, 0, 0, 0];
            let mut message = vec![LITTLE_ENDIAN, kind, 0, PROTOCOL_VERSION];
            message.extend([length(body), 7_u32.to_le_bytes(), length(&fields)].concat());
            message.extend(fields);
            message.extend(body);
            message
        };
        stream.write_all(&message(4, b"")).unwrap();
        stream.write_all(&message(METHOD_RETURN, value)).unwrap();
    }

    fn bus(value: &'static [u8]) -> Bus {
        let (stream, mut server) = UnixStream::pair().unwrap();
        answer(&mut server, value);
        std::thread::spawn(move || io::copy(&mut server, &mut io::sink()));
        Bus { stream, serial: 0 }
    }

    const ANY: Property<'_> = Property { destination: "a.b", path: "/a", interface: "a.b.C", name: "D" };

    #[test]
    fn properties_are_read_behind_signals() {
        assert_eq!(bus(b"\x01s\0\0\x08\0\0\0stopping\0").string(&ANY).unwrap(), "stopping");
        assert!(bus(b"\x01b\0\0\x01\0\0\0").boolean(&ANY).unwrap());
        assert!(!bus(b"\x01b\0\0\0\0\0\0").boolean(&ANY).unwrap());
    }

    #[test]
    fn what_is_no_such_property_is_an_error() {
        assert!(bus(b"\x01s\0\0\xff\0\0\0short").string(&ANY).is_err());
        assert!(bus(b"").string(&ANY).is_err());
        assert!(bus(b"\x01s\0\0\0\0\0\0\0").boolean(&ANY).is_err());
    }

    #[test]
    fn a_call_is_laid_out_as_the_specification_wants() {
        let call = MethodCall { destination: "a.b", path: "/", interface: "c.d", member: "E", arguments: &["f", "gh"] };
        let message = encode(&call, 3);
        let fields = u32::from_le_bytes(message[12..16].try_into().unwrap()) as usize;
        let body = &message[(16 + fields).next_multiple_of(8)..];
        assert_eq!(body, b"\x01\0\0\0f\0\0\0\x02\0\0\0gh\0");
        assert_eq!(u32::from_le_bytes(message[4..8].try_into().unwrap()) as usize, body.len());
        assert!(message.windows(8).any(|window| window == *b"\x08\x01g\0\x02ss\0"));
    }
}
