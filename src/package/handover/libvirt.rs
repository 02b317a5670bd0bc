//! A domain for libvirt (libvirt.org/formatdomain.html), as `virsh define` takes it.
//!
//! The domain writes to its disk, so the disk is a copy and never a file of the store.

use std::fmt::Write;

use super::DescribedImage;
use crate::package::xml::escape;
use crate::store::manifest::StoredFile;

/// Returns the domain that runs this disk: the machine that it was built in, with libvirt's default network.
#[must_use]
pub fn domain(image: &DescribedImage<'_>) -> String {
    let manifest = image.manifest;
    let machine = &manifest.machine;
    let boot = boot(image);
    let firmware = if machine.firmware == "uefi" && manifest.kernel.is_none() { " firmware='efi'" } else { "" };
    // An image that was built without KVM may have been built on a host without it.
    let (kind, cpu) = if machine.accel == "tcg" { ("qemu", "maximum") } else { ("kvm", "host-passthrough") };
    let mut xml = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        xml,
        "<domain type='{kind}'>\n  <name>{name}</name>\n  <description>{description}</description>\n  \
         <memory unit='bytes'>{memory}</memory>\n  <vcpu>{cpus}</vcpu>\n  \
         <os{firmware}>\n    <type arch='x86_64' machine='q35'>hvm</type>\n    {boot}\n  </os>\n  \
         <features>\n    <acpi/>\n    <apic/>\n  </features>\n  <cpu mode='{cpu}'/>\n{DEVICES}",
        name = escape(&image.stem()),
        description = escape(&manifest.image.description),
        memory = machine.memory,
        cpus = machine.cpus,
    );
    xml.replace("@FORMAT@", &escape(&image.output.format)).replace("@FILE@", &escape(&image.path.to_string_lossy()))
}

/// Returns what the domain boots: its disk, or the kernel beside that.
fn boot(image: &DescribedImage<'_>) -> String {
    let Some(kernel) = &image.manifest.kernel else { return "<boot dev='hd'/>".to_owned() };
    let path = |file: &StoredFile| escape(&image.path.with_file_name(&file.file).to_string_lossy());
    let initrd = kernel.initrd.as_ref().map(|initrd| format!("<initrd>{}</initrd>", path(initrd)));
    let cmdline = escape(&kernel.cmdline);
    format!("<kernel>{}</kernel>{}<cmdline>{cmdline}</cmdline>", path(&kernel.image), initrd.unwrap_or_default())
}

const DEVICES: &str = "  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='@FORMAT@' discard='unmap'/>
      <source file='@FILE@'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='network'>
      <source network='default'/>
      <model type='virtio'/>
    </interface>
    <serial type='pty'/>
    <console type='pty'/>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <rng model='virtio'>
      <backend model='random'>/dev/urandom</backend>
    </rng>
  </devices>
</domain>
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::manifest::ManifestKernel;

    #[test]
    fn a_domain_names_its_disk_with_its_format() {
        let (manifest, path) = crate::package::handover::tests::sample();
        let image = DescribedImage { manifest: &manifest, output: &manifest.outputs[0], path: &path };
        let xml = domain(&image);
        assert!(xml.contains("<driver name='qemu' type='qcow2' discard='unmap'/>"), "{xml}");
        assert!(xml.contains("<source file='/store/it&apos;s &lt;web&gt;/1.4.0/web-1.4.0.qcow2'/>"), "{xml}");
        assert!(xml.contains("<description>nginx &amp; &quot;our&quot; &lt;site&gt;</description>"), "{xml}");
        assert!(xml.contains("<memory unit='bytes'>1073741824</memory>") && !xml.contains("firmware="), "{xml}");
    }

    #[test]
    fn a_domain_of_an_image_built_without_kvm_needs_none() {
        let (mut manifest, path) = crate::package::handover::tests::sample();
        for (accel, kind, cpu) in
            [("tcg", "type='qemu'", "mode='maximum'"), ("kvm", "type='kvm'", "mode='host-passthrough'")]
        {
            manifest.machine.accel = accel.into();
            let xml = domain(&DescribedImage { manifest: &manifest, output: &manifest.outputs[0], path: &path });
            assert!(xml.contains(kind) && xml.contains(cpu), "{xml}");
        }
    }

    #[test]
    fn a_kernel_is_beside_the_disk() {
        let (mut manifest, path) = crate::package::handover::tests::sample();
        let [image, initrd] = ["web.kernel", "web.initrd"].map(StoredFile::staged);
        manifest.kernel = Some(ManifestKernel { image, initrd: Some(initrd), cmdline: "root=\"a\"".into() });
        let xml = domain(&DescribedImage { manifest: &manifest, output: &manifest.outputs[0], path: &path });
        let folder = "/store/it&apos;s &lt;web&gt;/1.4.0";
        assert!(
            xml.contains(&format!("<kernel>{folder}/web.kernel</kernel><initrd>{folder}/web.initrd</initrd>")),
            "{xml}"
        );
        assert!(xml.contains("<cmdline>root=&quot;a&quot;</cmdline>") && !xml.contains("<boot dev="), "{xml}");
    }

    #[test]
    fn uefi_is_asked_for() {
        let (mut manifest, path) = crate::package::handover::tests::sample();
        manifest.machine.firmware = "uefi".into();
        let image = DescribedImage { manifest: &manifest, output: &manifest.outputs[0], path: &path };
        assert!(domain(&image).contains("<os firmware='efi'>"));
    }
}
