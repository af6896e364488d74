"""
What a team would write in an afternoon, to compare with: the vendor's SDK, Google's usual clients, no ledger.

It looks at no member, waits for no end, remembers nothing between deliveries.
"""

import json
import os

import functions_framework
from google.cloud import pubsub_v1, secretmanager
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkmodelarts.v1 import DeleteHyperClusterRequest, ModelArtsClient

publisher = pubsub_v1.PublisherClient()
TOPIC = os.environ["TOPIC"]


def credentials(project_id):
    name = os.environ["SECRET"]
    if name.startswith("file://"):
        with open(name.removeprefix("file://")) as file:
            keys = json.load(file)
    else:
        client = secretmanager.SecretManagerServiceClient()
        keys = json.loads(client.access_secret_version(name=name).payload.data)
    return BasicCredentials(keys["access_key"], keys["secret_key"], project_id)


@functions_framework.http
def cleanup(request):
    data = json.loads(request.get_data())
    client = (
        ModelArtsClient.new_builder()
        .with_credentials(credentials(data["project_id"]))
        .with_endpoints([os.environ["MODELARTS_ENDPOINT"]])
        .build()
    )
    client.delete_hyper_cluster(DeleteHyperClusterRequest(id=data["cluster_id"], type=data.get("type")))
    publisher.publish(TOPIC, json.dumps({"outcome": "deleted", "cluster_id": data["cluster_id"]}).encode()).result()
    return {"outcome": "deleted", "reason": None}
