// @ts-check
/** Puts the page together. What is shown follows from the search: see `address.js`. */

import { followAddress } from "./address.js";
import { installBrowse } from "./browse.js";
import { compareFile, installComparison } from "./comparison.js";
import { installCrop } from "./crop.js";
import { takePictures } from "./handover.js";
import { giveUp, installNotice, notify } from "./notice.js";
import { installOptions } from "./options.js";
import { installQuery, searchFile } from "./query.js";
import { installRecent } from "./recent.js";
import { installResults } from "./results.js";
import { installSelection } from "./selection.js";
import { installStart, needIndex, refreshLabels } from "./start.js";
import { pair, search } from "./state.js";
import { installStatus, waitForService } from "./status.js";
import { stop } from "./task.js";
import { installViewer } from "./viewer.js";

// Listeners are called in this order: first the last search ends.
search.listen(stop);
search.listen(giveUp);
installNotice({ wait: waitForService, useKey: needIndex });
installOptions();
installQuery();
installCrop();
installResults();
installSelection();
installViewer();
installStart();
installRecent();
installComparison();
installBrowse();
takePictures((picture) => void (pair.value ? compareFile(picture) : searchFile(picture)), notify);
followAddress();
installStatus({ settled: () => void refreshLabels() });
