#!/bin/sh
# Makes a virtual machine of @IMAGE@ on a Proxmox VE host (7.2 or newer), as root.
set -eu

usage() {
	echo "usage: $0 VMID STORAGE [NAME]" >&2
	exit 2
}
case $# in 2 | 3) ;; *) usage ;; esac
vmid=$1 storage=$2 name=${3-'@NAME@'}
case $vmid in '' | *[!0-9]*) usage ;; esac

folder=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
disk=$folder/@DISK@
# The list of options below has no way to write a comma.
case $disk in *,*) echo "$0: move the image to a folder without a comma in its path" >&2 && exit 2 ;; esac
echo '@SHA256@' "*$disk" | sha256sum --check --quiet -

qm create "$vmid" --name "$name" --ostype l26 --machine q35 --cores @CPUS@ --memory @MEMORY@ \
	--net0 virtio,bridge=vmbr0 --scsihw virtio-scsi-pci \
	--serial0 socket --vga serial0 --agent 1@FIRMWARE@
qm set "$vmid" --scsi0 "$storage:0,import-from=$disk,discard=on" --boot order=scsi0
qm set "$vmid" --ide2 "$storage:cloudinit"
echo "virtual machine $vmid is there: qm start $vmid, or qm template $vmid" >&2
