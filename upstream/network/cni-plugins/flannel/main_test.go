package main

import (
	"encoding/json"
	"reflect"
	"testing"
)

const leaseText = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1420\nFLANNEL_IPMASQ=true\n"

func TestMakesABridgeConfigurationFromTheLease(t *testing.T) {
	lease, err := parseLease([]byte(leaseText))
	if err != nil {
		t.Fatal(err)
	}
	var conf netConf
	in := `{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}}`
	if err := json.Unmarshal([]byte(in), &conf); err != nil {
		t.Fatal(err)
	}
	plugin, out, err := conf.forPlugin(lease)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"cniVersion":"1.0.0","name":"cbr0","type":"bridge","isGateway":true,"hairpinMode":true,
		"isDefaultGateway":true,"ipMasq":false,"mtu":1420,"ipam":{"type":"host-local",
		"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}]}}`
	var wantValue, gotValue any
	if json.Unmarshal([]byte(want), &wantValue) != nil || json.Unmarshal(out, &gotValue) != nil {
		t.Fatal("not JSON")
	}
	if plugin != "bridge" || !reflect.DeepEqual(wantValue, gotValue) {
		t.Fatalf("got %s %s", plugin, out)
	}
}

func TestRefusesAnIncompleteLease(t *testing.T) {
	for _, text := range []string{"", "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n", "FLANNEL_MTU=x\n"} {
		if _, err := parseLease([]byte(text)); err == nil {
			t.Fatalf("accepted %q", text)
		}
	}
}
