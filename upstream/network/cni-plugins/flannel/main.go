// Flannel is the CNI plugin "flannel": it turns the lease that flanneld wrote
// into a configuration of the plugin "bridge" and calls that.
//
// It is written here because the public proxy does not serve the upstream
// module; it reads the same configuration. It keeps no files of its own: the
// configuration for DEL is made from the lease again, so a DEL that comes
// before flanneld is up fails and is retried by the kubelet.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const defaultSubnetFile = "/run/flannel/subnet.env"

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Check: check, Del: del}, version.All, "CNI plugin flannel")
}

func add(args *skel.CmdArgs) error {
	plugin, conf, err := delegate(args.StdinData)
	if err != nil {
		return err
	}
	result, err := invoke.DelegateAdd(context.TODO(), plugin, conf, nil)
	if err != nil {
		return err
	}
	return result.Print()
}

func check(args *skel.CmdArgs) error {
	plugin, conf, err := delegate(args.StdinData)
	if err != nil {
		return err
	}
	return invoke.DelegateCheck(context.TODO(), plugin, conf, nil)
}

func del(args *skel.CmdArgs) error {
	plugin, conf, err := delegate(args.StdinData)
	if err != nil {
		return err
	}
	return invoke.DelegateDel(context.TODO(), plugin, conf, nil)
}

type netConf struct {
	types.NetConf
	SubnetFile    string         `json:"subnetFile"`
	Delegate      map[string]any `json:"delegate"`
	RuntimeConfig map[string]any `json:"runtimeConfig"`
}

// delegate makes the plugin's name and configuration from ours and the lease.
func delegate(stdin []byte) (string, []byte, error) {
	conf := netConf{SubnetFile: defaultSubnetFile}
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return "", nil, fmt.Errorf("network configuration: %w", err)
	}
	text, err := os.ReadFile(conf.SubnetFile)
	if err != nil {
		return "", nil, fmt.Errorf("flanneld has no lease yet: %w", err)
	}
	lease, err := parseLease(text)
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", conf.SubnetFile, err)
	}
	return conf.forPlugin(lease)
}

func (conf netConf) forPlugin(lease lease) (string, []byte, error) {
	out := map[string]any{"type": "bridge", "isGateway": true}
	for key, value := range conf.Delegate {
		out[key] = value
	}
	plugin, ok := out["type"].(string)
	if !ok {
		return "", nil, fmt.Errorf("delegate.type is not a string")
	}
	defaults := map[string]any{"ipMasq": !lease.masquerades, "mtu": lease.mtu}
	for key, value := range defaults {
		if _, set := out[key]; !set {
			out[key] = value
		}
	}
	out["name"] = conf.Name
	out["cniVersion"] = conf.CNIVersion
	out["ipam"] = map[string]any{"type": "host-local", "ranges": lease.ranges(), "routes": lease.routes()}
	if len(conf.RuntimeConfig) > 0 {
		out["runtimeConfig"] = conf.RuntimeConfig
	}
	bytes, err := json.Marshal(out)
	return plugin, bytes, err
}

// lease is what flanneld writes for this node.
type lease struct {
	networks    []string
	subnets     []string
	mtu         uint
	masquerades bool
}

func parseLease(text []byte) (lease, error) {
	var found lease
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), "=")
		switch key {
		case "FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK":
			found.networks = append(found.networks, strings.Split(value, ",")...)
		case "FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET":
			// The file has the gateway's address ("10.244.1.1/24"), the plugin wants the prefix.
			_, subnet, err := net.ParseCIDR(value)
			if err != nil {
				return lease{}, fmt.Errorf("%s: %w", key, err)
			}
			found.subnets = append(found.subnets, subnet.String())
		case "FLANNEL_MTU":
			mtu, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				return lease{}, fmt.Errorf("FLANNEL_MTU: %w", err)
			}
			found.mtu = uint(mtu)
		case "FLANNEL_IPMASQ":
			found.masquerades = value == "true"
		}
	}
	if len(found.networks) == 0 || len(found.subnets) == 0 || found.mtu == 0 {
		return lease{}, fmt.Errorf("network, subnet or MTU is missing")
	}
	return found, nil
}

func (l lease) ranges() [][]map[string]string {
	var ranges [][]map[string]string
	for _, subnet := range l.subnets {
		ranges = append(ranges, []map[string]string{{"subnet": subnet}})
	}
	return ranges
}

func (l lease) routes() []map[string]string {
	var routes []map[string]string
	for _, network := range l.networks {
		routes = append(routes, map[string]string{"dst": network})
	}
	return routes
}
