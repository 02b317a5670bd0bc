//! The certificate authority of one build: it certifies every host for the guest, and its key is never written anywhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The length of a line of PEM (RFC 7468, section 2), characters.
const PEM_LINE: usize = 64;

/// An authority, and the certificates that it has issued so far.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    issued: Mutex<HashMap<String, Arc<ServerConfig>>>,
}

/// The certificate of a host cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The host's name cannot be in a certificate, or no key can be generated.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The certificate cannot be used.
    #[error("cannot use the certificate: {0}")]
    Tls(#[from] rustls::Error),
}

impl Authority {
    /// Generates an authority.
    pub(super) fn generate() -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = lasting(CertificateParams::default());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "kiln, for one build");
        let certificate = params.self_signed(&key)?;
        let pem = pem(certificate.der());
        Ok(Self { issuer: Issuer::new(params, key), pem, issued: Mutex::default() })
    }

    /// Returns the authority's certificate as PEM.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// Returns the configuration of a TLS server for this host.
    pub(super) fn server(&self, host: &str) -> Result<Arc<ServerConfig>, AuthorityError> {
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = issued.get(host) {
            return Ok(Arc::clone(server));
        }
        let server = Arc::new(self.issue(host)?);
        issued.insert(host.to_owned(), Arc::clone(&server));
        Ok(server)
    }

    fn issue(&self, host: &str) -> Result<ServerConfig, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = lasting(CertificateParams::new(vec![host.to_owned()])?);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.distinguished_name.push(DnType::CommonName, host.chars().take(64).collect::<String>());
        let certificate = params.signed_by(&key, &self.issuer)?;
        let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)?;
        // HTTP/2 is not offered: clients fall back to what the proxy speaks.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Makes a certificate valid whatever the guest's clock is: a locked build sees the time of its record.
fn lasting(mut params: CertificateParams) -> CertificateParams {
    params.not_before = date_time_ymd(1990, 1, 1);
    params.not_after = date_time_ymd(4096, 1, 1);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let encoded = STANDARD.encode(certificate);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in encoded.as_bytes().chunks(PEM_LINE) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use rustls::pki_types::pem::PemObject;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection, StreamOwned};

    use super::*;

    #[test]
    fn a_client_that_trusts_the_authority_trusts_every_host() {
        let authority = Authority::generate().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = Arc::new(client);
        for host in ["example.org", "a.b.example.org", "127.0.0.1"] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let server = ServerConnection::new(authority.server(host).unwrap()).unwrap();
            let thread = std::thread::spawn(move || {
                let mut stream = StreamOwned::new(server, theirs);
                stream.write_all(b"hello").unwrap();
                stream.flush().unwrap();
            });
            let connection = ClientConnection::new(Arc::clone(&client), host.try_into().unwrap()).unwrap();
            let mut heard = [0; 5];
            StreamOwned::new(connection, ours).read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"hello", "{host}");
            thread.join().unwrap();
        }
        assert!(Arc::ptr_eq(&authority.server("a").unwrap(), &authority.server("a").unwrap()));
    }
}
