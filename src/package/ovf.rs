//! The descriptor of a machine in an OVA: OVF 1.1 (DMTF DSP0243), with the two extensions that `VMware`'s products require.

use crate::specfile::FirmwareKind;

use super::PackageFacts;
use super::xml::escape;

/// URI of a `streamOptimized` disk in DSP0243, 9.1, and `VMware`'s specification.
const DISK_FORMAT: &str = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";
/// Hardware version of `ESXi` 6.5 and newer; `VirtualBox` ignores it.
const HARDWARE: &str = "vmx-13";
/// Number of "Linux 64-Bit" among the operating systems of CIM.
const LINUX_64: u32 = 101;

/// Returns the XML document. `disk` is the name of the disk's file, `bytes` its length.
///
/// Elements of an `Item` are in alphabetical order, as their schema wants them.
#[must_use]
pub fn descriptor(facts: &PackageFacts, disk: &str, bytes: u64) -> String {
    let name = escape(&facts.name);
    let version = escape(&facts.version);
    let description = escape(&facts.description);
    let capacity = facts.disk_size;
    let disk = escape(disk);
    let hardware = hardware(facts);
    let annotation = if description.is_empty() {
        String::new()
    } else {
        format!(
            "    <AnnotationSection>\n      <Info>What it is</Info>\n      <Annotation>{description}</Annotation>\n    </AnnotationSection>\n"
        )
    };
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData" xmlns:vmw="http://www.vmware.com/schema/ovf">
  <References>
    <File ovf:href="{disk}" ovf:id="file1" ovf:size="{bytes}"/>
  </References>
  <DiskSection>
    <Info>The disk</Info>
    <Disk ovf:capacity="{capacity}" ovf:capacityAllocationUnits="byte" ovf:diskId="disk1" ovf:fileRef="file1" ovf:format="{DISK_FORMAT}"/>
  </DiskSection>
  <NetworkSection>
    <Info>The networks</Info>
    <Network ovf:name="VM Network">
      <Description>Where the first network card is connected</Description>
    </Network>
  </NetworkSection>
  <VirtualSystem ovf:id="{name}">
    <Info>A virtual machine</Info>
    <Name>{name}</Name>
{annotation}    <ProductSection>
      <Info>The image</Info>
      <Product>{name}</Product>
      <Version>{version}</Version>
      <FullVersion>{version}</FullVersion>
    </ProductSection>
    <OperatingSystemSection ovf:id="{LINUX_64}" vmw:osType="otherLinux64Guest">
      <Info>What runs in it</Info>
      <Description>Linux, 64 bit</Description>
    </OperatingSystemSection>
{hardware}  </VirtualSystem>
</Envelope>
"#
    )
}

fn hardware(facts: &PackageFacts) -> String {
    let memory = facts.memory.bytes() >> 20;
    let firmware = match facts.firmware {
        FirmwareKind::Bios => "bios",
        FirmwareKind::Uefi => "efi",
    };
    let name = escape(&facts.name);
    let cpus = facts.cpus;
    format!(
        r#"    <VirtualHardwareSection>
      <Info>The machine</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>{HARDWARE}</vssd:VirtualSystemType>
      </System>
      <Item>
        <rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits>
        <rasd:ElementName>{cpus} virtual CPU(s)</rasd:ElementName>
        <rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>{cpus}</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>
        <rasd:ElementName>{memory} MiB of memory</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>{memory}</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:Address>0</rasd:Address>
        <rasd:ElementName>SCSI controller</rasd:ElementName>
        <rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>lsilogic</rasd:ResourceSubType>
        <rasd:ResourceType>6</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:AddressOnParent>0</rasd:AddressOnParent>
        <rasd:ElementName>Hard disk</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/disk1</rasd:HostResource>
        <rasd:InstanceID>4</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent>
        <rasd:ResourceType>17</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:AutomaticAllocation>true</rasd:AutomaticAllocation>
        <rasd:Connection>VM Network</rasd:Connection>
        <rasd:ElementName>Network card</rasd:ElementName>
        <rasd:InstanceID>5</rasd:InstanceID>
        <rasd:ResourceSubType>E1000</rasd:ResourceSubType>
        <rasd:ResourceType>10</rasd:ResourceType>
      </Item>
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="{firmware}"/>
    </VirtualHardwareSection>
"#
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::facts;
    use super::*;

    #[test]
    fn it_says_what_the_disk_and_the_machine_are() {
        let xml = descriptor(&facts(), "web.vmdk", 12345);
        for part in [
            r#"<File ovf:href="web.vmdk" ovf:id="file1" ovf:size="12345"/>"#,
            r#"ovf:capacity="2148532224" ovf:capacityAllocationUnits="byte""#,
            "vmdk.html#streamOptimized\"",
            "<FullVersion>1.4.0+b1</FullVersion>",
            "<Annotation>nginx &amp; &quot;our&quot; &lt;site&gt;</Annotation>",
            "<rasd:VirtualQuantity>1536</rasd:VirtualQuantity>",
            r#"vmw:key="firmware" vmw:value="bios""#,
        ] {
            assert!(xml.contains(part), "{part}\n{xml}");
        }
        let uefi =
            descriptor(&PackageFacts { firmware: FirmwareKind::Uefi, description: String::new(), ..facts() }, "d", 1);
        assert!(uefi.contains(r#"vmw:value="efi""#) && !uefi.contains("Annotation"));
    }
}
